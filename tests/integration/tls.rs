//! https and wss served directly, certificates that change, and settings that cannot work.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::support::{Account, Device, Env, Exit, Node, eventually, run_to_exit, within};

/// A certificate for 127.0.0.1 that signs itself, and its key.
struct Pair {
    cert: CertificateDer<'static>,
    cert_pem: String,
    key_pem: String,
}

impl Pair {
    fn fresh() -> Self {
        let made =
            rcgen::generate_simple_self_signed(["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        Self {
            cert: made.cert.der().clone(),
            cert_pem: made.cert.pem(),
            key_pem: made.signing_key.serialize_pem(),
        }
    }

    fn write(&self, folder: &Path) {
        std::fs::write(folder.join("cert.pem"), &self.cert_pem).unwrap();
        std::fs::write(folder.join("key.pem"), &self.key_pem).unwrap();
    }
}

fn env_of(folder: &TempDir) -> Env {
    let path = |name: &str| folder.path().join(name).display().to_string();
    Env::new().set("TLS_CERT", path("cert.pem")).set("TLS_KEY", path("key.pem"))
}

async fn start() -> (Node, Pair, TempDir) {
    let (pair, folder) = (Pair::fresh(), tempfile::tempdir().unwrap());
    pair.write(folder.path());
    (Node::start(&env_of(&folder)).await, pair, folder)
}

/// The answer to a request by a client that trusts nobody but `pair`.
async fn ask(node: &Node, pair: &Pair, request: String) -> std::io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(pair.cert.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(node.address()).await?;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut stream = within(TlsConnector::from(Arc::new(config)).connect(name, stream)).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    // The server may close without a farewell of TLS; the answer has its length.
    drop(within(stream.read_to_end(&mut answer)).await);
    Ok(String::from_utf8(answer).unwrap())
}

async fn get_ready(node: &Node, pair: &Pair) -> std::io::Result<String> {
    let request = "GET /api/health/ready HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
    ask(node, pair, request.to_owned()).await
}

async fn register(node: &Node, pair: &Pair) -> Account {
    let body = json!({"email": "ann@example.test", "password": "a long password"}).to_string();
    let head = "POST /api/auth/register HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n";
    let length = body.len();
    let request = format!("{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}");
    let answer = ask(node, pair, request).await.unwrap();
    let body: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    Account {
        id: text(&body["user"]["id"]),
        email: text(&body["user"]["email"]),
        password: "a long password".into(),
        token: text(&body["token"]),
        refresh_token: text(&body["refreshToken"]),
    }
}

#[tokio::test]
async fn rest_and_both_transports_work_over_tls() {
    let (node, pair, _folder) = start().await;
    let ann = register(&node, &pair).await;
    let url = format!("https://{}", node.address());
    let options = || Device::options_at(&url, &ann).option("rejectUnauthorized", false);

    let polling = options().transports(&["polling"]).connect().await;
    let websocket = options().transports(&["websocket"]).connect().await;

    let text = "x".repeat(200_000);
    websocket.update("big", json!(text)).await;
    assert_eq!(polling.next("session-updated").await["state"], json!(text));
    polling.update("small", json!(1)).await;
    assert_eq!(websocket.next("session-updated").await["state"], 1);
}

#[tokio::test]
async fn a_stock_client_upgrades_over_tls() {
    let (node, pair, _folder) = start().await;
    let ann = register(&node, &pair).await;
    let url = format!("https://{}", node.address());
    let device = Device::options_at(&url, &ann).stock().option("rejectUnauthorized", false).connect().await;
    eventually("an upgrade to WebSocket", || async {
        (device.inspect().await["transport"] == "websocket").then_some(())
    })
    .await;
}

#[tokio::test]
async fn new_files_are_used_without_a_restart_and_bad_ones_are_not() {
    let (node, first, folder) = start().await;
    assert!(get_ready(&node, &first).await.unwrap().starts_with("HTTP/1.1 200"));

    std::fs::write(folder.path().join("cert.pem"), "no certificate any more").unwrap();
    node.log_line(|line| line.contains("do not work").then_some(())).await;
    assert!(get_ready(&node, &first).await.is_ok(), "the old pair stays");

    let second = Pair::fresh();
    second.write(folder.path());
    eventually("the new certificate", || async { get_ready(&node, &second).await.ok() }).await;
    assert!(get_ready(&node, &first).await.is_err(), "nobody gets the old one any more");
}

#[tokio::test]
async fn whoever_does_not_speak_tls_gets_nothing_and_disturbs_nobody() {
    let (node, pair, _folder) = start().await;
    let mut plain = TcpStream::connect(node.address()).await.unwrap();
    plain.write_all(b"GET /api/health/ready HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // A reset is as good an end as any.
    drop(within(plain.read_to_end(&mut answer)).await);
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    assert!(get_ready(&node, &pair).await.is_ok());
}

#[tokio::test]
async fn the_probe_of_containers_speaks_tls_too() {
    let (node, _pair, folder) = start().await;
    let port = node.address().rsplit(':').next().unwrap();
    let exit = run_to_exit(&env_of(&folder).set("PORT", port).arg("health")).await;
    assert_eq!(exit.code, Some(0), "{}", exit.output);
}

#[tokio::test]
async fn a_pair_that_cannot_work_is_named_and_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (Pair::fresh(), Pair::fresh());
    let refused = async |env: Env, expected: &str| {
        let Exit { code, output } = run_to_exit(&env.arg("check-config")).await;
        assert_eq!(code, Some(2), "{output}");
        assert!(output.contains(expected), "{expected}: {output}");
        assert!(!output.contains(&folder.path().display().to_string()), "{output}");
    };
    refused(env_of(&folder), "TLS_CERT: cannot be read: entity not found").await;
    one.write(folder.path());
    refused(env_of(&folder).unset("TLS_KEY"), "TLS_KEY: is required with TLS_CERT").await;
    refused(env_of(&folder).unset("TLS_CERT"), "TLS_CERT: is required with TLS_KEY").await;
    std::fs::write(folder.path().join("key.pem"), &other.key_pem).unwrap();
    refused(env_of(&folder), "TLS_KEY: does not belong to TLS_CERT").await;
    std::fs::write(folder.path().join("key.pem"), &one.cert_pem).unwrap();
    refused(env_of(&folder), "TLS_KEY: holds no private key in PEM").await;
    std::fs::write(folder.path().join("cert.pem"), &one.key_pem).unwrap();
    refused(env_of(&folder), "TLS_CERT: holds no certificate in PEM").await;
}
