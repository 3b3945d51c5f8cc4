//! Everything that is kept of one user, as one JSON document: for the user who
//! asks for it, and for moving elsewhere.
//!
//! Written as it is read, so that a long history needs no memory. Passwords and
//! tokens are not in it.

use std::io::Write;

use serde_json::json;

use crate::model::{Change, Clock, Seq, UserId};
use crate::store::{Account, Selection, Store};
use crate::sync::restore::Restore;

/// Writes the document.
///
/// # Errors
/// When there is no such user, the store fails or `out` does.
pub async fn export(store: &dyn Store, who: &str, out: &mut dyn Write) -> anyhow::Result<()> {
    let Some(account) = account(store, who).await? else { anyhow::bail!("There is no user {who}.") };
    let user = account.user;
    let Some(snapshot) = store.snapshot(user, &Selection::default()).await? else {
        anyhow::bail!("There is no user {who} any more.")
    };
    let about =
        json!({"id": user.to_string(), "email": account.email, "createdAt": account.created_at.to_string()});
    write!(out, "{{\"user\":{about},\"devices\":[")?;
    for (index, device) in store.devices(user).await?.iter().enumerate() {
        let about = json!({
            "id": device.id.to_string(),
            "name": device.description.name,
            "type": device.description.kind,
            "createdAt": device.created_at.to_string(),
            "lastSeen": device.last_seen.to_string(),
        });
        // Metadata is JSON already, and goes through untouched.
        let about = about.to_string();
        let about = about.strip_suffix('}').unwrap_or_default();
        write!(out, "{}{about},\"metadata\":{}}}", comma(index), device.description.metadata)?;
    }
    write!(out, "],\"messages\":[")?;
    messages(store, user, out).await?;
    write!(out, "],{},\"history\":[", Restore::of(&snapshot).fields)?;
    let mut after = Seq(0);
    let mut written = 0;
    loop {
        let changes = store.kept_changes(user, after).await?;
        let Some(last) = changes.last() else { break };
        after = last.seq;
        for change in &changes {
            write!(out, "{}{}", comma(written), entry(change))?;
            written += 1;
        }
    }
    Ok(writeln!(out, "]}}")?)
}

/// The messages that wait for the user's devices.
async fn messages(store: &dyn Store, user: UserId, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut written = 0;
    for device in store.devices(user).await? {
        let mut after = 0;
        loop {
            let waiting = store.mailbox(user, device.id, after, Clock::now()).await?;
            let Some(last) = waiting.last() else { break };
            after = last.place;
            for message in &waiting {
                let about = json!({
                    "messageId": message.id.to_string(),
                    "targetDeviceId": device.id.to_string(),
                    "sourceDeviceId": message.source.to_string(),
                    "sentAt": message.sent_at.to_string(),
                });
                let about = about.to_string();
                let about = about.strip_suffix('}').unwrap_or_default();
                write!(out, "{}{about},\"message\":{}}}", comma(written), message.json)?;
                written += 1;
            }
        }
    }
    Ok(())
}

/// The account of an id or an e-mail address.
async fn account(store: &dyn Store, who: &str) -> anyhow::Result<Option<Account>> {
    match UserId::parse(who) {
        Some(user) => Ok(store.account_of(user).await?),
        None => Ok(store.account(&who.trim().to_lowercase()).await?),
    }
}

fn comma(index: usize) -> &'static str {
    if index == 0 { "" } else { "," }
}

fn entry(change: &Change) -> String {
    let about = json!({
        "seq": change.seq,
        "sessionKey": change.key.as_str(),
        "version": change.version,
        "deviceId": change.device.map(|device| device.to_string()),
        "updatedAt": change.at.to_string(),
        "deleted": change.state.is_none(),
    });
    let about = about.to_string();
    let about = about.strip_suffix('}').unwrap_or_default();
    format!("{about},\"state\":{}}}", change.state.as_deref().unwrap_or("null"))
}
