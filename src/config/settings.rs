//! The table of every setting: its name, its default and what it means.
//!
//! One row serves the flag, the environment variable and `.env`; a test compares
//! `docs/CONFIGURATION.md` and `.env.example`, which `gen-config` prints, with this table.

/// One setting.
pub struct Setting {
    /// The environment variable; the flag is the same word in kebab case.
    pub name: &'static str,
    /// What holds when nobody sets it; empty for "not set".
    pub default: &'static str,
    /// One line for people, with the unit.
    pub help: &'static str,
}

const fn row(name: &'static str, default: &'static str, help: &'static str) -> Setting {
    Setting { name, default, help }
}

/// All settings in the order of the document.
pub const SETTINGS: &[Setting] = &[
    row("PORT", "3001", "TCP port for REST and Socket.IO; 0 takes a free one"),
    row("HOST", "0.0.0.0", "address to listen on"),
    row("TLS_CERT", "", "PEM file with the certificate chain, to serve https and wss; with TLS_KEY"),
    row("TLS_KEY", "", "PEM file with the private key"),
    row("CONSOLE", "on", "on: serve the console, a page to try things and see one's devices, at /; off"),
    row("METRICS_PORT", "", "a second port that serves only /metrics, for scrapers"),
    row("NODE_ID", "", "this node's name in logs and health; default: the host name"),
    row("JWT_SECRET", "", "key that signs access tokens, 32 bytes or more"),
    row("JWT_SECRET_PREVIOUS", "", "the key before a rotation: accepted, never used to sign"),
    row("JWKS", "", "public keys of an issuer outside whose tokens are taken too: a file or a URL"),
    row("JWT_ISSUER", "", "what its tokens say in iss; with JWKS"),
    row("JWT_AUDIENCE", "", "comma-separated: what its tokens say in aud, one of them; empty: anything"),
    row("JWT_USER_CLAIM", "sub", "the claim of its tokens that names the user"),
    row("DATABASE_URL", "sqlite://data/tandem.db", "where durable records live"),
    row("REDIS_URL", "", "the backplane between nodes; empty: this node is alone"),
    row("SESSION_CACHE", "on", "on: keep big restores in Redis for reconnect storms; off"),
    row(
        "DURABILITY",
        "local",
        "when a write is acked: local (on this disk), or replicated (copied by Litestream too)",
    ),
    row("LITESTREAM_SOCKET", "", "control socket of the Litestream that copies the SQLite database"),
    row("SQLITE_SYNCHRONOUS", "FULL", "FULL, or NORMAL, which may lose acked writes in a power cut"),
    row("BCRYPT_COST", "12", "work factor of password hashes, 4 to 15; a login brings a cheaper hash to it"),
    row("TOKEN_TTL_SECONDS", "604800", "life of an access token in seconds"),
    row("REFRESH_TTL_SECONDS", "2592000", "life of an unused refresh token in seconds"),
    row("REGISTRATION", "open", "open, or closed: nobody can register"),
    row("LEGACY_TOKENS", "on", "on: accept tokens of the replaced Node.js server; off"),
    row("ALLOWED_ORIGINS", "", "comma-separated origins that browsers may come from; empty: any"),
    row("TRUSTED_PROXIES", "", "comma-separated addresses or networks whose X-Forwarded-For counts"),
    row("DRAIN_SECONDS", "15", "how long a stopping node takes to close its sockets, in seconds"),
    row("DRAIN_LAG_SECONDS", "5", "how long a stopping node goes on serving first, in seconds"),
    row("DISCONNECT_GRACE_SECONDS", "3", "wait before a lost device is announced, in seconds"),
    row("RESUME_WINDOW_SECONDS", "120", "how long an offline device may come back unnamed, in seconds"),
    row("PING_INTERVAL_SECONDS", "25", "Engine.IO heartbeat, in seconds"),
    row("PING_TIMEOUT_SECONDS", "20", "how long a heartbeat may stay unanswered, in seconds"),
    row("LIMIT_STATE_BYTES", "262144", "bytes of one state"),
    row("LIMIT_KEYS_PER_USER", "1000", "live session keys a user"),
    row("LIMIT_USER_BYTES", "8388608", "bytes of live state a user"),
    row("LIMIT_FRAME_BYTES", "524288", "bytes of a Socket.IO frame or a REST body"),
    row("LIMIT_REALTIME_BYTES", "65536", "bytes of a realtime payload"),
    row("LIMIT_MESSAGE_BYTES", "65536", "bytes of a device message"),
    row("LIMIT_SOCKETS_PER_USER", "64", "connected sockets a user, on each node"),
    row("LIMIT_DEVICES_PER_USER", "200", "devices a user; the longest offline is dropped"),
    row("LIMIT_CONNECTIONS", "20000", "TCP connections a node"),
    row(
        "LIMIT_EVENTS_PER_SECOND",
        "200",
        "events a second and device; twice that a user on each node; 0: off",
    ),
    row("LIMIT_LOGINS_PER_EMAIL", "10", "logins a minute and e-mail; 0: off"),
    row("LIMIT_AUTH_PER_ADDRESS", "60", "register, login and refresh a minute and address; 0: off"),
    row(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "",
        "base URL of an OTLP collector (HTTP) that traces go to; empty: none",
    ),
    row("OTEL_EXPORTER_OTLP_HEADERS", "", "comma-separated name=value headers for it, such as keys"),
    row("OTEL_SERVICE_NAME", "tandem", "what traces call this service"),
    row("OTEL_TRACES_SAMPLER_ARG", "0.01", "share of events that are traced, from 0 to 1"),
    row("LOG", "info", "log filter, as in RUST_LOG: error, warn, info, debug or per module"),
    row("LOG_FORMAT", "auto", "json, text, or auto: text on a terminal"),
];
