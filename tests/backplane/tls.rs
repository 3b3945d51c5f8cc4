//! `rediss://`: the certificate is checked against the system's roots, here `SSL_CERT_FILE`.

use std::time::Duration;

use crate::support::*;
use tandem::backplane::*;

/// Names the certificate that the process trusts, and with it the process that is to do the work.
const TRUSTED: &str = "SSL_CERT_FILE";

/// The roots are read from the environment, which a process with threads must not change: so the test runs itself
/// once more, with the certificate in its environment from the start.
#[tokio::test]
async fn a_rediss_url_speaks_tls_and_checks_the_certificate() {
    if std::env::var_os("TANDEM_TLS_FOLDER").is_some() {
        return speaks_and_checks(&TlsFiles::from_environment()).await;
    }
    let files = TlsFiles::make();
    let itself = std::env::current_exe().unwrap();
    let mut child = tokio::process::Command::new(itself);
    child.args(["--exact", "tls::a_rediss_url_speaks_tls_and_checks_the_certificate", "--nocapture"]);
    child.env(TRUSTED, files.path("cert.pem")).env("TANDEM_TLS_FOLDER", files.path("")).kill_on_drop(true);
    let output = within(child.output()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

async fn speaks_and_checks(files: &TlsFiles) {
    let port = free_port();
    let _redis = redis_with(files, port).await;
    let url = format!("rediss://localhost:{port}");
    let a = Node::join(&url, settings("a", quick(), InboundLimits::default())).await;
    let mut b = Node::join(&url, settings("b", quick(), InboundLimits::default())).await;
    let ann = user();
    b.backplane.subscribe(ann).await.unwrap();

    a.backplane.publish(ann, &change(1));

    assert_eq!(b.seq().await, (ann, 1));
    let stranger_port = free_port();
    let _stranger = redis_with(&TlsFiles::make(), stranger_port).await;
    let timing = Timing { join_within: Duration::from_millis(500), ..quick() };
    let url = format!("rediss://localhost:{stranger_port}");
    let c = Node::join(&url, settings("c", timing, InboundLimits::default())).await;
    assert!(!c.backplane.is_up(), "a certificate that nobody vouches for");
}

async fn redis_with(files: &TlsFiles, port: u16) -> RedisServer {
    let (cert, key, port_text) = (files.path("cert.pem"), files.path("key.pem"), port.to_string());
    let args = ["--port", "0", "--tls-port", &port_text, "--tls-cert-file", &cert, "--tls-key-file", &key];
    let args: Vec<&str> = args.into_iter().chain(["--tls-auth-clients", "no"]).collect();
    RedisServer::start_on(port, &args).await
}
