//! Every variable, its default and its check.
//!
//! A flag wins over the environment, which wins over `.env` in the working
//! directory. All mistakes are reported at once, each with its variable's name
//! and never with its value. Nothing else in the crate reads the environment.

mod settings;

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

pub use settings::{SETTINGS, Setting};

use crate::auth::external::{self, Source};
use crate::model::Secret;
use crate::net::network::Network;
use crate::net::tls;
use crate::store::{self, Database, replica};
use crate::telemetry::{LogFormat, traces};

/// Secrets found in tutorials and samples; whoever signs with one of them signs
/// with a key that everybody knows.
const WELL_KNOWN_SECRETS: &[&str] = &[
    "your-secret-key",
    "your-super-secret-jwt-key",
    "your-256-bit-secret",
    "changeme",
    "secret",
    "jwt-secret",
    "bench",
];

/// Bytes an HS256 key has at least (RFC 7518, section 3.2).
const SECRET_BYTES_MIN: usize = 32;

/// Bounds on what clients may send and keep; see `docs/CONFIGURATION.md`.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each is a row of the settings table")]
pub struct Limits {
    pub state_bytes: usize,
    pub keys_per_user: u64,
    pub user_bytes: u64,
    pub frame_bytes: usize,
    pub realtime_bytes: usize,
    pub message_bytes: usize,
    pub sockets_per_user: usize,
    pub devices_per_user: u32,
    pub connections: usize,
    pub events_per_second: u32,
    pub logins_per_email: u32,
    pub auth_per_address: u32,
}

/// The whole configuration. Only `main` and `app` see it; each part is given
/// the few values it needs.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each is a row of the settings table")]
pub struct Config {
    pub host: IpAddr,
    pub port: u16,
    pub metrics_port: Option<u16>,
    pub tls: Option<tls::Files>,
    pub node_id: String,
    pub jwt_secret: Option<Secret>,
    pub jwt_secret_previous: Option<Secret>,
    pub external_tokens: Option<external::Settings>,
    pub database: Database,
    pub replica: Option<replica::Settings>,
    pub redis_url: Option<Secret>,
    pub session_cache: bool,
    pub bcrypt_cost: u32,
    pub token_ttl: Duration,
    pub refresh_ttl: Duration,
    pub registration_open: bool,
    pub legacy_tokens: bool,
    pub allowed_origins: Vec<String>,
    pub trusted_proxies: Vec<Network>,
    pub drain: Duration,
    pub drain_lag: Duration,
    pub disconnect_grace: Duration,
    pub resume_window: Duration,
    pub ping_interval: Duration,
    pub ping_timeout: Duration,
    pub limits: Limits,
    pub console: bool,
    pub traces: Option<traces::Settings>,
    pub log: String,
    pub log_format: LogFormat,
}

/// What is wrong with the configuration: a line for each mistake.
#[derive(Debug)]
pub struct Mistakes(pub Vec<String>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

/// Where values come from, strongest first.
#[derive(Default)]
pub struct Sources {
    /// From the command line, by variable name.
    pub flags: HashMap<String, String>,
    /// From the process's environment.
    pub environment: HashMap<String, String>,
    /// From `.env`.
    pub file: HashMap<String, String>,
}

impl Sources {
    /// The sources of this process: `flags` as parsed, its environment, and
    /// `.env` in the working directory when there is one.
    ///
    /// # Errors
    /// When `.env` exists but cannot be read as text.
    pub fn of_process(flags: HashMap<String, String>) -> Result<Self, Mistakes> {
        #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let file = match std::fs::read_to_string(".env") {
            Ok(text) => parse_env_file(&text)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => HashMap::new(),
            Err(_) => return Err(Mistakes(vec![".env: cannot be read as UTF-8 text".to_owned()])),
        };
        Ok(Self { flags, environment, file })
    }

    fn get(&self, name: &str) -> Option<&str> {
        [&self.flags, &self.environment, &self.file]
            .into_iter()
            .find_map(|source| source.get(name))
            .map(|value| value.trim())
            .filter(|value| !value.is_empty())
    }
}

/// `NAME=value` lines; `#` starts a comment line; quotes around a value go.
pub(crate) fn parse_env_file(text: &str) -> Result<HashMap<String, String>, Mistakes> {
    let mut values = HashMap::new();
    let mut mistakes = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let Some((name, value)) = line.split_once('=') else {
            mistakes.push(format!(".env line {}: expected NAME=value", index + 1));
            continue;
        };
        values.insert(name.trim().to_owned(), unquoted(value.trim()).to_owned());
    }
    if mistakes.is_empty() { Ok(values) } else { Err(Mistakes(mistakes)) }
}

/// A quoted value without its quotes; an unquoted one without a trailing
/// comment, which needs a space before its `#`.
fn unquoted(value: &str) -> &str {
    for quote in ['"', '\''] {
        if let Some(rest) = value.strip_prefix(quote)
            && let Some(end) = rest.find(quote)
        {
            return &rest[..end];
        }
    }
    value.split(" #").next().unwrap_or(value).trim_end()
}

impl Config {
    /// Reads and checks everything.
    ///
    /// # Errors
    /// All mistakes at once, each naming its variable and never its value.
    pub fn load(sources: &Sources) -> Result<Self, Mistakes> {
        let mut reader = Reader { sources, mistakes: Vec::new() };
        let config = reader.read();
        reader.check_secrets(&config);
        reader.check_replica(&config);
        if reader.mistakes.is_empty() { Ok(config) } else { Err(Mistakes(reader.mistakes)) }
    }
}

struct Reader<'a> {
    sources: &'a Sources,
    mistakes: Vec<String>,
}

impl Reader<'_> {
    fn read(&mut self) -> Config {
        Config {
            host: self.value("HOST", "an IP address", |text| text.parse().ok()),
            port: self.number("PORT", 0, 65_535),
            metrics_port: self.optional("METRICS_PORT", "a port from 1 to 65535", |text| {
                text.parse().ok().filter(|port| *port > 0)
            }),
            tls: self.tls(),
            node_id: self.node_id(),
            jwt_secret: self.secret("JWT_SECRET"),
            jwt_secret_previous: self.secret("JWT_SECRET_PREVIOUS"),
            external_tokens: self.external_tokens(),
            database: self.database(),
            replica: self.replica(),
            redis_url: self.redis_url(),
            session_cache: self.choice("SESSION_CACHE", &[("on", true), ("off", false)]),
            bcrypt_cost: self.number("BCRYPT_COST", 4, 15),
            token_ttl: self.seconds("TOKEN_TTL_SECONDS", 1, 10 * 365 * 86_400),
            refresh_ttl: self.seconds("REFRESH_TTL_SECONDS", 1, 10 * 365 * 86_400),
            registration_open: self.choice("REGISTRATION", &[("open", true), ("closed", false)]),
            legacy_tokens: self.choice("LEGACY_TOKENS", &[("on", true), ("off", false)]),
            allowed_origins: self.list("ALLOWED_ORIGINS", "origins such as https://app.example", origin),
            trusted_proxies: self
                .list("TRUSTED_PROXIES", "IP addresses or networks", |text| text.parse().ok()),
            drain: self.seconds("DRAIN_SECONDS", 0, 3_600),
            drain_lag: self.seconds("DRAIN_LAG_SECONDS", 0, 600),
            disconnect_grace: self.seconds("DISCONNECT_GRACE_SECONDS", 0, 600),
            resume_window: self.seconds("RESUME_WINDOW_SECONDS", 0, 7 * 86_400),
            ping_interval: self.seconds("PING_INTERVAL_SECONDS", 1, 300),
            ping_timeout: self.seconds("PING_TIMEOUT_SECONDS", 1, 300),
            limits: self.limits(),
            console: self.choice("CONSOLE", &[("on", true), ("off", false)]),
            traces: self.traces(),
            log: self.log_filter(),
            log_format: self.choice(
                "LOG_FORMAT",
                &[("json", LogFormat::Json), ("text", LogFormat::Text), ("auto", LogFormat::Auto)],
            ),
        }
    }

    fn limits(&mut self) -> Limits {
        Limits {
            state_bytes: self.number("LIMIT_STATE_BYTES", 1, 64 << 20),
            keys_per_user: self.number("LIMIT_KEYS_PER_USER", 1, 1_000_000),
            user_bytes: self.number("LIMIT_USER_BYTES", 1, 1 << 30),
            frame_bytes: self.number("LIMIT_FRAME_BYTES", 1_024, 64 << 20),
            realtime_bytes: self.number("LIMIT_REALTIME_BYTES", 1, 64 << 20),
            message_bytes: self.number("LIMIT_MESSAGE_BYTES", 1, 64 << 20),
            sockets_per_user: self.number("LIMIT_SOCKETS_PER_USER", 1, 100_000),
            devices_per_user: self.number("LIMIT_DEVICES_PER_USER", 1, 1_000_000),
            connections: self.number("LIMIT_CONNECTIONS", 1, 10_000_000),
            events_per_second: self.number("LIMIT_EVENTS_PER_SECOND", 0, 10_000_000),
            logins_per_email: self.number("LIMIT_LOGINS_PER_EMAIL", 0, 10_000_000),
            auth_per_address: self.number("LIMIT_AUTH_PER_ADDRESS", 0, 10_000_000),
        }
    }

    /// The value in force: what somebody set, or the default of the table.
    fn text(&self, name: &str) -> &str {
        let default = SETTINGS.iter().find(|row| row.name == name).map_or("", |row| row.default);
        self.sources.get(name).unwrap_or(default)
    }

    fn value<T>(&mut self, name: &str, expected: &str, parse: impl Fn(&str) -> Option<T>) -> T {
        let parsed = parse(self.text(name));
        parsed.unwrap_or_else(|| {
            self.mistakes.push(format!("{name}: expected {expected}"));
            let default = SETTINGS.iter().find(|row| row.name == name).map_or("", |row| row.default);
            parse(default).expect("every default of the table is a good value")
        })
    }

    fn optional<T>(&mut self, name: &str, expected: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let text = self.sources.get(name)?;
        let parsed = parse(text);
        if parsed.is_none() {
            self.mistakes.push(format!("{name}: expected {expected}"));
        }
        parsed
    }

    fn number<T>(&mut self, name: &str, least: T, most: T) -> T
    where
        T: FromStr + PartialOrd + fmt::Display + Copy,
    {
        let expected = format!("a whole number from {least} to {most}");
        self.value(name, &expected, |text| text.parse().ok().filter(|number| (least..=most).contains(number)))
    }

    /// Seconds, fractions allowed, so that tests can scale windows down.
    fn seconds(&mut self, name: &str, least: u64, most: u64) -> Duration {
        let expected = format!("seconds from {least} to {most}");
        self.value(name, &expected, |text| {
            let seconds: f64 = text.parse().ok()?;
            let fits = seconds >= 0.0 && seconds <= most as f64 && (seconds > 0.0 || least == 0);
            fits.then(|| Duration::from_secs_f64(seconds))
        })
    }

    fn choice<T: Copy>(&mut self, name: &str, choices: &[(&str, T)]) -> T {
        let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
        self.value(name, &words.join(" or "), |text| {
            choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value)
        })
    }

    fn list<T>(&mut self, name: &str, expected: &str, parse: impl Fn(&str) -> Option<T>) -> Vec<T> {
        let texts = self.text(name).split(',').map(str::trim).filter(|text| !text.is_empty());
        let parsed: Option<Vec<T>> = texts.map(&parse).collect();
        parsed.unwrap_or_else(|| {
            self.mistakes.push(format!("{name}: expected a comma-separated list of {expected}"));
            Vec::new()
        })
    }

    fn secret(&self, name: &str) -> Option<Secret> {
        self.sources.get(name).map(|text| Secret::new(text.to_owned()))
    }

    /// Both files or neither, and a pair that can be served.
    fn tls(&mut self) -> Option<tls::Files> {
        let path = |name: &str| self.sources.get(name).map(|path| Path::new(path).to_owned());
        let files = match (path("TLS_CERT"), path("TLS_KEY")) {
            (None, None) => return None,
            (Some(cert), Some(key)) => tls::Files { cert, key },
            (Some(_), None) => {
                self.mistakes.push("TLS_KEY: is required with TLS_CERT".to_owned());
                return None;
            }
            (None, Some(_)) => {
                self.mistakes.push("TLS_CERT: is required with TLS_KEY".to_owned());
                return None;
            }
        };
        if let Err(unfit) = files.load() {
            self.mistakes.push(unfit.to_string());
        }
        Some(files)
    }

    fn node_id(&mut self) -> String {
        let given =
            self.optional("NODE_ID", "1 to 64 letters, digits, dots, dashes or underscores", |text| {
                let plain = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
                ((1..=64).contains(&text.len()) && text.chars().all(plain)).then(|| text.to_owned())
            });
        given.unwrap_or_else(|| {
            let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            let name = name.trim();
            if name.is_empty() { "tandem".to_owned() } else { name.chars().take(64).collect() }
        })
    }

    fn database(&mut self) -> Database {
        let full_sync = self.choice("SQLITE_SYNCHRONOUS", &[("FULL", true), ("NORMAL", false)]);
        self.value("DATABASE_URL", "sqlite://PATH or postgres://USER@HOST/NAME", |text| {
            if store::is_postgres_url(text) {
                return Some(Database::Postgres { url: Secret::new(text.to_owned()) });
            }
            let path = text.strip_prefix("sqlite://").or_else(|| text.strip_prefix("sqlite:"))?;
            let path = path.split('?').next().filter(|path| !path.is_empty())?;
            Some(Database::Sqlite { path: Path::new(path).to_owned(), full_sync })
        })
    }

    fn replica(&mut self) -> Option<replica::Settings> {
        let acks_wait = self.choice("DURABILITY", &[("local", false), ("replicated", true)]);
        let socket = self.sources.get("LITESTREAM_SOCKET").map(|path| Path::new(path).to_owned());
        if acks_wait && socket.is_none() {
            self.mistakes.push("LITESTREAM_SOCKET: is required with DURABILITY=replicated".to_owned());
        }
        socket.map(|socket| replica::Settings { socket, acks_wait })
    }

    fn check_replica(&mut self, config: &Config) {
        if config.replica.is_some() && !matches!(config.database, Database::Sqlite { .. }) {
            self.mistakes.push("LITESTREAM_SOCKET: Litestream copies SQLite databases only".to_owned());
        }
    }

    fn external_tokens(&mut self) -> Option<external::Settings> {
        let keys = self.optional("JWKS", "a file, or a URL that begins with https:// or http://", |text| {
            let is_url = text.starts_with("https://") || text.starts_with("http://");
            let is_good = if is_url { text.parse::<http::Uri>().is_ok() } else { !text.contains("://") };
            let source =
                if is_url { Source::Url(text.to_owned()) } else { Source::File(Path::new(text).to_owned()) };
            is_good.then_some(source)
        });
        let issuer = self.sources.get("JWT_ISSUER").map(str::to_owned);
        let audiences = self.list("JWT_AUDIENCE", "names", |text| Some(text.to_owned()));
        let user_claim = self.text("JWT_USER_CLAIM").to_owned();
        let keys = keys?;
        let Some(issuer) = issuer else {
            self.mistakes.push("JWT_ISSUER: is required with JWKS".to_owned());
            return None;
        };
        Some(external::Settings { keys, issuer, audiences, user_claim })
    }

    fn traces(&mut self) -> Option<traces::Settings> {
        let endpoint =
            self.optional("OTEL_EXPORTER_OTLP_ENDPOINT", "http://HOST:PORT or https://HOST", |text| {
                let uri: http::Uri = text.parse().ok()?;
                let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
                (is_http && uri.host().is_some_and(|host| !host.is_empty())).then(|| text.to_owned())
            });
        let headers = self.list("OTEL_EXPORTER_OTLP_HEADERS", "name=value pairs", |text| {
            let (name, value) = text.split_once('=')?;
            http::HeaderName::try_from(name.trim()).ok()?;
            http::HeaderValue::try_from(value.trim()).ok()?;
            Some((name.trim().to_owned(), Secret::new(value.trim().to_owned())))
        });
        let ratio = self.value("OTEL_TRACES_SAMPLER_ARG", "a number from 0 to 1", |text| {
            text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio))
        });
        let service = self.text("OTEL_SERVICE_NAME").to_owned();
        endpoint.map(|endpoint| traces::Settings { endpoint, headers, service, ratio })
    }

    fn redis_url(&mut self) -> Option<Secret> {
        const SCHEMES: &[&str] = &[
            "redis://",
            "rediss://",
            "redis-sentinel://",
            "rediss-sentinel://",
            "redis-cluster://",
            "rediss-cluster://",
        ];
        self.optional("REDIS_URL", "redis://HOST[:PORT] or one of its kin", |text| {
            SCHEMES.iter().any(|scheme| text.starts_with(scheme)).then(|| Secret::new(text.to_owned()))
        })
    }

    fn log_filter(&mut self) -> String {
        self.value("LOG", "a log filter such as info or tandem=debug", |text| {
            tracing_subscriber::EnvFilter::try_new(text).ok().map(|_| text.to_owned())
        })
    }

    fn check_secrets(&mut self, config: &Config) {
        for (name, secret) in
            [("JWT_SECRET", &config.jwt_secret), ("JWT_SECRET_PREVIOUS", &config.jwt_secret_previous)]
        {
            let Some(secret) = secret else { continue };
            if WELL_KNOWN_SECRETS.iter().any(|known| secret.expose().eq_ignore_ascii_case(known)) {
                self.mistakes.push(format!("{name}: is a well-known sample value; make your own"));
            } else if secret.expose().len() < SECRET_BYTES_MIN {
                self.mistakes.push(format!("{name}: needs at least {SECRET_BYTES_MIN} bytes"));
            } else if secret.expose().bytes().all(|byte| Some(byte) == secret.expose().bytes().next()) {
                self.mistakes.push(format!("{name}: is one character over and over; make a random one"));
            }
        }
        if config.jwt_secret.is_none() && matches!(config.database, Database::Postgres { .. }) {
            self.mistakes.push("JWT_SECRET: is required with PostgreSQL; all nodes need the same".to_owned());
        }
        if config.jwt_secret.is_none() && config.redis_url.is_some() {
            self.mistakes.push("JWT_SECRET: is required with REDIS_URL; all nodes need the same".to_owned());
        }
    }
}

/// An origin exactly as browsers send it: scheme, host, port unless it is the
/// default; no path (RFC 6454, section 6.1).
fn origin(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once("://")?;
    let plain = !rest.is_empty() && !rest.contains(['/', '?', '#', '@', ' ', '*']);
    let known = ["http", "https", "capacitor", "ionic", "tauri", "app"].contains(&scheme);
    (plain && known).then(|| text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests;
