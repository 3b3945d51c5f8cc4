//! TLS served directly, for clients of the replaced server that know its port
//! as wss and for nodes without a balancer in front.
//!
//! Certificate and key are PEM files. They are looked at every few seconds: new
//! ones are used from the next connection on, and a pair that does not work
//! (a writer between its two files, say) leaves the old one in force.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::drain::Tasks;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Where certificate and key are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The certificate chain, the server's own first.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Why a pair of files cannot be served, by the setting to mend.
#[derive(Debug)]
pub enum Unfit {
    /// The certificate file.
    Cert(String),
    /// The key file.
    Key(String),
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unfit::Cert(why) => write!(f, "TLS_CERT: {why}"),
            Unfit::Key(why) => write!(f, "TLS_KEY: {why}"),
        }
    }
}

impl Files {
    /// Reads both and checks that they belong together.
    ///
    /// # Errors
    /// What is wrong with which, without its path.
    pub fn load(&self) -> Result<Arc<CertifiedKey>, Unfit> {
        let chain = certificates(&self.cert).map_err(Unfit::Cert)?;
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|error| Unfit::Key(why(&error, "private key")))?;
        CertifiedKey::from_der(chain, key, &provider()).map(Arc::new).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => Unfit::Key("does not belong to TLS_CERT".to_owned()),
            rustls::Error::InvalidCertificate(_) => {
                Unfit::Cert("is not a certificate that can be served".to_owned())
            }
            _ => Unfit::Key("is not a key that can be used".to_owned()),
        })
    }

    /// What changes when one of the files does.
    fn stamp(&self) -> [Option<(SystemTime, u64)>; 2] {
        [&self.cert, &self.key].map(|path| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        })
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = |error: &pem::Error| why(error, "certificate");
    let chain = CertificateDer::pem_file_iter(path).map_err(|error| read(&error))?;
    let chain = chain.collect::<Result<Vec<_>, _>>().map_err(|error| read(&error))?;
    if chain.is_empty() { Err("holds no certificate in PEM".to_owned()) } else { Ok(chain) }
}

fn why(error: &pem::Error, what: &str) -> String {
    match error {
        pem::Error::Io(error) => format!("cannot be read: {}", error.kind()),
        pem::Error::NoItemsFound => format!("holds no {what} in PEM"),
        _ => "is not PEM".to_owned(),
    }
}

fn provider() -> CryptoProvider {
    rustls::crypto::ring::default_provider()
}

/// Turns accepted connections into TLS streams.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    current: Arc<Current>,
}

/// The pair in force.
#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl Tls {
    /// Serves with `pair`: TLS 1.2 and 1.3, HTTP/1.1.
    ///
    /// # Errors
    /// When rustls refuses its own defaults.
    pub fn new(pair: Arc<CertifiedKey>) -> anyhow::Result<Self> {
        let current = Arc::new(Current(RwLock::new(pair)));
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(current.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { acceptor: Arc::new(config).into(), current })
    }

    /// Shakes hands, which the caller bounds in time.
    ///
    /// # Errors
    /// When the client does not speak TLS, or no TLS of ours.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.acceptor.accept(stream).await
    }

    /// Takes up new files until the node ends.
    pub async fn follow(self, files: Files, tasks: Tasks) {
        let mut seen = files.stamp();
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = tasks.ending() => return,
            }
            let stamp = files.stamp();
            if stamp == seen {
                continue;
            }
            match files.load() {
                Ok(pair) => {
                    *self.current.0.write().unwrap_or_else(PoisonError::into_inner) = pair;
                    tracing::info!("the TLS certificate was replaced");
                }
                Err(unfit) => {
                    tracing::warn!(%unfit, "the TLS files have changed and do not work; the old ones stay")
                }
            }
            seen = stamp;
        }
    }
}

/// A stream to this host's own node, for its health probe.
///
/// # Errors
/// When rustls refuses its own defaults.
pub fn probe(stream: std::net::TcpStream) -> anyhow::Result<impl io::Read + io::Write> {
    let config = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    let name = ServerName::try_from("localhost")?;
    Ok(rustls::StreamOwned::new(rustls::ClientConnection::new(Arc::new(config), name)?, stream))
}

/// A probe asks its own host whether it answers, and tells it nothing; who it is
/// does not matter, and its certificate names another host.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
