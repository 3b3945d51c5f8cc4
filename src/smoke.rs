//! `tandem smoke URL`: proves from outside that a deployment does its work: two devices connect, what one changes and
//! says the other hears. For `helm test`, for a pipeline after a release, and for a person who doubts.
//!
//! It makes an account of its own and removes it, or uses the token of an account that is there for it. It knows only
//! the public protocol.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::{Arg, ArgMatches, Command};
use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};
use uuid::Uuid;

/// The longest wait for any one answer.
const WITHIN: Duration = Duration::from_secs(10);

/// The subcommand.
pub fn command() -> Command {
    Command::new("smoke")
        .about("Connect two devices to a running deployment and see that each hears the other")
        .arg(
            Arg::new("url")
                .value_name("URL")
                .default_value("http://127.0.0.1:3001")
                .help("Where clients connect to, without TLS"),
        )
        .arg(Arg::new("token-file").long("token-file").value_name("FILE").help(
            "Holds a token to use, where REGISTRATION is closed; otherwise an account is made and removed",
        ))
}

/// Does it, and prints each step as it succeeds.
///
/// # Errors
/// With the step that failed.
pub fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let url = matches.get_one::<String>("url").map_or("", String::as_str);
    let server = Server::of(url)?;
    match matches.get_one::<String>("token-file") {
        Some(file) => {
            let token = std::fs::read_to_string(Path::new(file)).context("the token cannot be read")?;
            server.converse(token.trim())
        }
        None => {
            let account = Throwaway::register(&server)?;
            let outcome = server.converse(&account.token);
            account.remove(&server).and(outcome)
        }
    }
}

/// Host and port to ask.
struct Server {
    authority: String,
}

impl Server {
    fn of(url: &str) -> anyhow::Result<Self> {
        let rest =
            url.strip_prefix("http://").context("the URL begins with http://; TLS is not spoken here")?;
        let authority = rest.split('/').next().unwrap_or_default();
        ensure!(!authority.is_empty(), "the URL names no host");
        let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let authority = if has_port { authority.to_owned() } else { format!("{authority}:80") };
        Ok(Self { authority })
    }

    fn connect(&self) -> anyhow::Result<TcpStream> {
        let address = self.authority.to_socket_addrs()?.next().context("the host has no address")?;
        let stream = TcpStream::connect_timeout(&address, WITHIN)
            .with_context(|| format!("{} does not answer", self.authority))?;
        stream.set_read_timeout(Some(WITHIN))?;
        stream.set_write_timeout(Some(WITHIN))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Status and body of one request.
    fn ask(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: &Value,
    ) -> anyhow::Result<(u16, Value)> {
        let body = body.to_string();
        let authorization =
            token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        let mut stream = self.connect()?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: application/json\r\n\
             {authorization}Content-Length: {}\r\n\r\n{body}",
            self.authority,
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        let (_, body) = answer.split_once("\r\n\r\n").context("the answer has no end of its head")?;
        Ok((status.context("the answer has no status")?, serde_json::from_str(body).unwrap_or(Value::Null)))
    }

    /// Two devices of `token`'s user hear each other.
    fn converse(&self, token: &str) -> anyhow::Result<()> {
        let began = Instant::now();
        let mut writer = Socket::open(self, token, "smoke writer").context("the first device")?;
        let mut reader = Socket::open(self, token, "smoke reader").context("the second device")?;
        step("two devices are connected", began);

        let began = Instant::now();
        let mark = json!(Uuid::now_v7());
        let write = json!(["session-update", {"sessionKey": "tandem-smoke", "state": mark}]);
        let written = writer.acknowledged(&write)?;
        ensure!(written["ok"] == true, "the change was refused: {written}");
        reader.wait_for("session-updated", |changed| changed["state"] == mark)?;
        step("a change is stored and reaches the other device", began);

        let began = Instant::now();
        let said = json!(["realtime-event", {"type": "tandem-smoke", "payload": mark}]);
        let relayed = reader.acknowledged(&said)?;
        ensure!(relayed["ok"] == true, "the event was refused: {relayed}");
        writer.wait_for("realtime-event", |event| event["payload"] == mark)?;
        step("an event reaches the other device", began);

        let gone = writer.acknowledged(&json!(["session-delete", {"sessionKey": "tandem-smoke"}]))?;
        ensure!(gone["ok"] == true, "the key was not removed: {gone}");
        Ok(())
    }
}

/// An account for one run.
struct Throwaway {
    token: String,
    password: String,
}

impl Throwaway {
    fn register(server: &Server) -> anyhow::Result<Self> {
        let began = Instant::now();
        let password = Uuid::new_v4().to_string();
        let email = format!("smoke-{}@tandem.invalid", Uuid::now_v7());
        let credentials = json!({"email": email, "password": password});
        let (status, body) = server.ask("POST", "/api/auth/register", None, &credentials)?;
        let token = body["token"].as_str().map(str::to_owned);
        let Some(token) = token.filter(|_| status == 201) else {
            bail!("no account was made: {status} {}; see --token-file", body["error"]["code"]);
        };
        step("an account is made", began);
        Ok(Self { token, password })
    }

    fn remove(self, server: &Server) -> anyhow::Result<()> {
        let began = Instant::now();
        let password = json!({"password": self.password});
        let (status, body) = server.ask("DELETE", "/api/account", Some(&self.token), &password)?;
        ensure!(status == 204, "the account was not removed: {status} {}", body["error"]["code"]);
        step("the account is removed", began);
        Ok(())
    }
}

/// A device's connection.
struct Socket {
    stream: WebSocket<TcpStream>,
}

impl Socket {
    fn open(server: &Server, token: &str, name: &str) -> anyhow::Result<Self> {
        let url = format!("ws://{}/socket.io/?EIO=4&transport=websocket", server.authority);
        let (stream, _) = tungstenite::client(url, server.connect()?).context("no WebSocket was opened")?;
        let mut socket = Self { stream };
        let auth = json!({"token": token, "deviceInfo": {"name": name, "type": "smoke"}});
        socket.send(&format!("40{auth}"))?;
        socket.wait_for("session-restored", |_| true)?;
        Ok(socket)
    }

    fn send(&mut self, packet: &str) -> anyhow::Result<()> {
        Ok(self.stream.send(Message::text(packet))?)
    }

    /// Sends an event and returns its acknowledgement.
    fn acknowledged(&mut self, event: &Value) -> anyhow::Result<Value> {
        self.send(&format!("420{event}"))?;
        self.find("no acknowledgement came", |packet| {
            let answer: Value = serde_json::from_str(packet.strip_prefix("430")?).ok()?;
            Some(answer[0].clone())
        })
    }

    /// The next event of this name that fits.
    fn wait_for(&mut self, name: &str, fits: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        self.find(&format!("no fitting {name} came"), |packet| {
            let event: Value = serde_json::from_str(packet.strip_prefix("42")?).ok()?;
            (event[0] == name && fits(&event[1])).then(|| event[1].clone())
        })
    }

    /// Reads packets, answering pings, until one is what is looked for.
    fn find<T>(&mut self, otherwise: &str, looked_for: impl Fn(&str) -> Option<T>) -> anyhow::Result<T> {
        let began = Instant::now();
        while began.elapsed() < WITHIN {
            let message = self.stream.read().with_context(|| otherwise.to_owned())?;
            let Message::Text(packet) = message else { continue };
            if packet.as_str() == "2" {
                self.send("3")?;
            }
            if let Some(refusal) = packet.strip_prefix("44") {
                bail!("the connection was refused: {refusal}");
            }
            if let Some(found) = looked_for(&packet) {
                return Ok(found);
            }
        }
        bail!("{otherwise}")
    }
}

fn step(done: &str, began: Instant) {
    drop(writeln!(std::io::stdout(), "ok  {done} ({} ms)", began.elapsed().as_millis()));
}
