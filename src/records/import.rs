//! The replaced Node.js server's users come in with their ids, passwords, devices
//! and sessions, so that its clients log in and restore as before.
//!
//! Each user comes in whole, in one transaction; who is there already is left as
//! they are, so a run that broke off is simply repeated. What cannot be kept (a
//! key or state beyond the limits, an address that is none) is named and left out.

use std::path::Path;
use std::sync::Arc;

use chrono::{DateTime, NaiveDateTime};
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use crate::auth::normal_email;
use crate::devices::parse_info;
use crate::merge::OnConflict;
use crate::model::{DeviceId, DeviceInfo, SessionKey, Timestamp, UserId};
use crate::store::seed::{SeedDatabase, SeedDevice, SeedEntry, SeedUser};
use crate::store::{
    Account, Command, ImportAccount, ImportedDevice, Reply, SessionWrite, Store, WriteChange, WriteRefusal,
};

/// Numbers below it are seconds, others milliseconds: 1973 in the one, the year
/// 5138 in the other.
const SECONDS_BELOW: i64 = 100_000_000_000;

/// What came of an import.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "each is what its name says")]
pub struct Imported {
    pub users: u64,
    pub devices: u64,
    pub keys: u64,
    /// Users who were there before.
    pub present: u64,
    /// What was left out, a sentence each.
    pub left_out: Vec<String>,
}

/// Brings in everybody of the database at `path`; `told` hears of each user.
///
/// # Errors
/// When the file is no such database, or the store fails.
pub async fn import(
    store: &dyn Store,
    path: &Path,
    devices_per_user: u32,
    mut told: impl FnMut(u64, i64),
) -> anyhow::Result<Imported> {
    let mut seed = SeedDatabase::open(path).await?;
    let (total, mut seen) = (seed.count().await?, 0);
    let mut imported = Imported::default();
    loop {
        let users = seed.next_users().await?;
        if users.is_empty() {
            break;
        }
        for user in users {
            let devices = seed.devices(&user.id, devices_per_user).await?;
            let entries = seed.entries(&user.id).await?;
            imported.user(store, &user, &devices, &entries).await?;
            seen += 1;
            told(seen, total);
        }
    }
    seed.close().await?;
    Ok(imported)
}

impl Imported {
    async fn user(
        &mut self,
        store: &dyn Store,
        user: &SeedUser,
        devices: &[SeedDevice],
        entries: &[SeedEntry],
    ) -> anyhow::Result<()> {
        let account = match account_of(user) {
            Ok(account) => account,
            Err(reason) => {
                self.left_out.push(format!("user {}: {reason}", user.id));
                return Ok(());
            }
        };
        if store.account_of(account.user).await?.is_some() {
            self.present += 1;
            return Ok(());
        }
        let id = account.user;
        let devices: Vec<_> = devices.iter().filter_map(known_device).collect();
        let mut keys = Vec::new();
        let mut batch = vec![Command::ImportAccount(ImportAccount { account, devices: devices.clone() })];
        for entry in entries {
            match write_of(id, &user.id, entry) {
                Ok(write) => {
                    keys.push(write.key.clone());
                    batch.push(Command::Write(Arc::new(write)));
                }
                Err(reason) => self.left_out.push(format!("session {}: {reason}", entry.id)),
            }
        }
        let mut replies = store.commit(&batch).await?.into_iter();
        if !matches!(replies.next(), Some(Reply::AccountCreated(true))) {
            self.left_out.push(format!("user {}: the address belongs to another user", user.id));
            return Ok(());
        }
        self.users += 1;
        self.devices += devices.len() as u64;
        for (key, reply) in keys.iter().zip(replies) {
            match reply {
                Reply::Written(Ok(_)) => self.keys += 1,
                Reply::Written(Err(refusal)) => {
                    self.left_out.push(format!("session {}:{key}: {}", user.id, explained(&refusal)));
                }
                other => anyhow::bail!("a write was answered by {other:?}"),
            }
        }
        Ok(())
    }
}

fn account_of(user: &SeedUser) -> Result<Account, &'static str> {
    let id = UserId::parse(&user.id).ok_or("its id is no UUID")?;
    let email = normal_email(&user.email).map_err(|_| "its address is none")?;
    if !["$2a$", "$2b$", "$2y$"].iter().any(|start| user.password_hash.starts_with(start)) {
        return Err("its password hash is not bcrypt's");
    }
    let password_hash = user.password_hash.clone();
    Ok(Account { user: id, email, password_hash, created_at: time(&user.created_at) })
}

/// A device without a UUID cannot be named by anybody.
fn known_device(device: &SeedDevice) -> Option<ImportedDevice> {
    let said = parse_info(Some(&device.metadata)).unwrap_or_else(|_| said_by_columns(device));
    let info = if said.name.is_empty() && !device.name.is_empty() { said_by_columns(device) } else { said };
    Some(ImportedDevice { id: DeviceId::parse(&device.id)?, info, last_seen: time(&device.last_seen) })
}

fn said_by_columns(device: &SeedDevice) -> DeviceInfo {
    let fields = [("name", &device.name), ("type", &device.kind)];
    let fields: Map<_, _> =
        fields.iter().map(|(name, value)| ((*name).to_owned(), Value::String((*value).clone()))).collect();
    let text = Value::Object(fields).to_string();
    parse_info(Some(&text)).or_else(|_| parse_info(None)).expect("no info at all is fine")
}

fn write_of(user: UserId, seed_user: &str, entry: &SeedEntry) -> Result<SessionWrite, &'static str> {
    let key = entry.id.strip_prefix(seed_user).and_then(|key| key.strip_prefix(':'));
    let key = key.and_then(SessionKey::parse).ok_or("its key is none")?;
    serde_json::from_str::<IgnoredAny>(&entry.data)
        .map_err(|_| "its state is not JSON, or nested too deep")?;
    Ok(SessionWrite {
        user,
        device: DeviceId::parse(&entry.device),
        key,
        change: WriteChange::State(entry.data.trim().into()),
        base_version: None,
        on_conflict: OnConflict::Overwrite,
        op_id: None,
        at: time(&entry.updated_at),
    })
}

fn explained(refusal: &WriteRefusal) -> String {
    match refusal {
        WriteRefusal::Quota(limit) => format!("beyond {limit}"),
        WriteRefusal::Refused(refusal) => refusal.to_string(),
        other => format!("{other:?}"),
    }
}

/// A number of milliseconds or seconds since 1970, or text as SQLite or
/// JavaScript writes it, in UTC; 1970 where it is neither.
fn time(text: &str) -> Timestamp {
    let text = text.trim();
    if let Ok(number) = text.parse::<f64>() {
        let number = number as i64;
        return Timestamp(if number.abs() < SECONDS_BELOW { number * 1_000 } else { number });
    }
    let full = DateTime::parse_from_rfc3339(text).map(|time| time.timestamp_millis());
    let plain = || NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f").map(|time| time.and_utc());
    Timestamp(full.ok().or_else(|| Some(plain().ok()?.timestamp_millis())).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_however_they_were_written() {
        let expected = Timestamp(1_700_000_000_000);
        for text in [
            "1700000000000",
            "1700000000",
            "1700000000000.0",
            "2023-11-14 22:13:20",
            "2023-11-14T22:13:20Z",
            "2023-11-14T22:13:20.000Z",
        ] {
            assert_eq!(time(text), expected, "{text}");
        }
        assert_eq!(time("long ago"), Timestamp(0));
    }

    #[test]
    fn a_device_is_what_it_said_or_what_its_columns_say() {
        let device = |metadata: &str| SeedDevice {
            id: "0b6e9d3c-6c5e-4a53-9a0e-6f0f3a8c1d2e".into(),
            name: "Phone".into(),
            kind: "mobile".into(),
            last_seen: "0".into(),
            metadata: metadata.into(),
        };
        let said = known_device(&device(r#"{"name":"Phone","type":"mobile","os":"x"}"#)).unwrap().info;
        assert_eq!((&*said.name, &*said.kind, &*said.metadata), ("Phone", "mobile", r#"{"os":"x"}"#));
        for metadata in ["", "{}", "no JSON"] {
            let said = known_device(&device(metadata)).unwrap().info;
            assert_eq!((&*said.name, &*said.kind), ("Phone", "mobile"), "{metadata:?}");
        }
    }
}
