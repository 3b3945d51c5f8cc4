//! From a configuration to a running node: opens the seams, builds the
//! services, mounts REST and Socket.IO, and takes them down in order.

use std::convert::Infallible;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use axum::body::Body;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tower::{Service, ServiceExt};

use crate::auth::external::{ExternalTokens, Source};
use crate::auth::operator::Operator;
use crate::auth::password::Hasher;
use crate::auth::refresh::RefreshTokens;
use crate::auth::token::Tokens;
use crate::auth::{self, AuthService};
use crate::backplane::{self, Joined, Observed};
use crate::config::Config;
use crate::devices::DeviceService;
use crate::drain::Tasks;
use crate::failure::{Code, Failure};
use crate::health::Health;
use crate::hub::{self, Hub};
use crate::mailbox::{self, Mailbox};
use crate::model::{BootId, Clock, Secret};
use crate::socket::engine::{PATH, SocketService};
use crate::store::replica::Replica;
use crate::store::{self, Bounds, Command, Database, Retention, Store, Writer};
use crate::sync::SyncEngine;
use crate::sync::cache::SessionCache;
use crate::telemetry::metrics::Metrics;
use crate::{http as rest, merge, net, socket};

/// Batches of committed changes that may wait for the hub.
const COMMITTED_BATCHES: usize = 64;

/// What is heard of device messages and waits for the mailbox.
const MAIL_WAITING: usize = 4_096;

/// How often a node says that it is alive.
const BEAT_EVERY: Duration = Duration::from_secs(2);

/// How often old records are looked for.
const PRUNE_EVERY: Duration = Duration::from_secs(10);

/// How long pruning rests after a go, as a multiple of what the go took: the
/// disk is the writers'.
const PRUNE_REST: u32 = 4;

/// How often the backplane's counters are copied into the metrics.
const COUNT_EVERY: Duration = Duration::from_secs(1);

/// What shutting down may take beyond the drain itself.
const END_WITHIN: Duration = Duration::from_secs(10);

/// A node that serves.
pub struct Running {
    /// Where REST and Socket.IO are.
    pub address: SocketAddr,
    /// Where metrics are, if they have a port of their own.
    pub metrics_address: Option<SocketAddr>,
    /// Why the operator should look, for the banner.
    pub warnings: Vec<String>,
    hub: Hub,
    store: Arc<dyn Store>,
    tasks: Tasks,
    drain: Duration,
    drain_lag: Duration,
}

/// Starts a node and returns once it serves.
///
/// # Errors
/// When the store cannot be opened or a port cannot be bound.
pub async fn start(config: Config) -> anyhow::Result<Running> {
    let tasks = Tasks::default();
    let metrics = Arc::new(Metrics::new());
    metrics.build_info.set(1.0);
    metrics.connections_limit.set(config.limits.connections as f64);
    let boot = BootId::fresh();
    let mut warnings = warnings(&config);
    warnings.extend(net::files::allow_for(config.limits.connections));
    let secret = secret(&config, &mut warnings)?;
    let store = open_store(&config).await?;
    let (committed, committed_rx) = mpsc::channel(COMMITTED_BATCHES);
    let replica = replica(&config, &tasks, &metrics)?;
    let writer = Writer::start(store.clone(), replica, committed, &tasks, metrics.clone());
    let joined = join_backplane(&config, &tasks, metrics.clone()).await?;
    let clustered = config.redis_url.is_some();
    let (mail, mail_rx) = mpsc::channel(MAIL_WAITING);
    let hub = Hub::new(hub::Parts {
        mail,
        store: store.clone(),
        backplane: joined.backplane.clone(),
        clustered,
        tasks: tasks.clone(),
        metrics: metrics.clone(),
        grace: config.disconnect_grace,
        sockets_per_user: config.limits.sockets_per_user,
    });
    tasks.spawn(hub::listen(hub.clone(), joined.inbound));
    tasks.spawn(hub::ask_regularly(hub.clone()));
    tasks.spawn(hub::relay(hub.clone(), committed_rx));

    let backplane = clustered.then(|| joined.backplane.clone());
    let health = Arc::new(Health::new(config.node_id.clone(), backplane.clone()));
    tasks.spawn(health.clone().watch(store.clone(), tasks.clone(), metrics.clone()));
    if let Err(error) = beat(&writer, boot, &config.node_id).await {
        // A disk that is full, or a lock that is held: what only reads can be served all the same.
        tracing::warn!(%error, "the store takes no writes yet");
    }
    tasks.spawn(beats(writer.clone(), boot, config.node_id.clone(), tasks.clone()));
    tasks.spawn(prune(store.clone(), tasks.clone()));

    let auth = Arc::new(AuthService::new(
        auth::Parts {
            store: store.clone(),
            writer: writer.clone(),
            hub: hub.clone(),
            tokens: Tokens::new(&secret, config.jwt_secret_previous.as_ref(), config.legacy_tokens),
            external: external_tokens(&config, &tasks).await?,
            refresh_tokens: RefreshTokens::new(&secret, config.jwt_secret_previous.as_ref()),
            hasher: hasher(&config)?,
            metrics: metrics.clone(),
            backplane: joined.backplane.clone(),
            tasks: tasks.clone(),
        },
        auth_settings(&config),
    ));
    let devices = Arc::new(DeviceService::new(
        store.clone(),
        writer.clone(),
        hub.clone(),
        boot,
        config.resume_window,
        tasks.clone(),
    ));
    let cache = backplane
        .filter(|_| config.session_cache)
        .map(|backplane| SessionCache::new(backplane, metrics.clone()));
    let mailbox = Mailbox::start(
        mailbox::Parts {
            store: store.clone(),
            writer: writer.clone(),
            hub: hub.clone(),
            tasks: tasks.clone(),
            metrics: metrics.clone(),
        },
        mail_rx,
    );
    let sync = Arc::new(SyncEngine::new(writer, store.clone(), metrics.clone(), cache));
    let services = rest::Services {
        auth: auth.clone(),
        devices: devices.clone(),
        sync: sync.clone(),
        health,
        metrics: metrics.clone(),
        tasks: tasks.clone(),
        settings: Arc::new(rest::Settings {
            body_bytes: config.limits.frame_bytes,
            trusted_proxies: config.trusted_proxies.clone(),
            console: config.console,
        }),
    };
    let sockets = Arc::new(socket::Services {
        auth,
        devices,
        sync,
        mailbox,
        hub: hub.clone(),
        tasks: tasks.clone(),
        metrics: metrics.clone(),
        shares: socket::Shares::new(config.limits.events_per_second),
        standstill: socket::standstill::Standstill::default(),
        expiry: socket::expiry::Expiry::default(),
        settings: socket_settings(&config),
    });
    tasks.spawn(socket::expiry::enforce(sockets.clone()));
    let (watched, watching) = (sockets.clone(), tasks.clone());
    tasks.spawn(async move { watched.standstill.watch(&watching).await });
    let entrance = Entrance {
        sockets: SocketService::new(sockets),
        rest: rest::routes(services.clone()),
        allowed_origins: config.allowed_origins.clone().into(),
    };
    let entrance =
        tower::ServiceBuilder::new().layer(rest::cors::layer(&config.allowed_origins)).service(entrance);

    let listener = TcpListener::bind((config.host, config.port))
        .await
        .with_context(|| format!("cannot listen on {}:{}", config.host, config.port))?;
    let address = listener.local_addr()?;
    let limits = |tls| net::Limits { connections_max: config.limits.connections, tls };
    let tls = tls(&config, &tasks)?;
    tasks.spawn(net::serve(listener, entrance, limits(tls), tasks.clone(), metrics.clone()));
    let metrics_address = match config.metrics_port {
        Some(port) => {
            let listener = TcpListener::bind((config.host, port))
                .await
                .with_context(|| format!("cannot listen on {}:{port}", config.host))?;
            let address = listener.local_addr()?;
            let routes = Plain(rest::metrics_routes(services));
            tasks.spawn(net::serve(listener, routes, limits(None), tasks.clone(), metrics));
            Some(address)
        }
        None => None,
    };
    Ok(Running {
        address,
        metrics_address,
        warnings,
        hub,
        store,
        tasks,
        drain: config.drain,
        drain_lag: config.drain_lag,
    })
}

impl Running {
    /// Takes the node down: not ready, still serving; then sockets are refused
    /// and the open ones closed spread over the drain window; then the rest.
    pub async fn drain(self) {
        self.tasks.begin_draining();
        tokio::time::sleep(self.drain_lag).await;
        self.hub.farewell(self.drain).await;
        self.tasks.end();
        if tokio::time::timeout(END_WITHIN, self.tasks.ended()).await.is_err() {
            tracing::warn!("some tasks did not end in time");
        }
        self.store.close().await;
    }
}

/// The other nodes, if there can be any. What is counted is copied into the
/// metrics every second.
async fn join_backplane(config: &Config, tasks: &Tasks, metrics: Arc<Metrics>) -> anyhow::Result<Joined> {
    let rtt = metrics.backplane_rtt.clone();
    let observed = Arc::new(Observed::with_probe_rtt(move |elapsed| rtt.record(elapsed)));
    let (tracker, stop) = tasks.parts();
    let settings = backplane::Settings {
        node_id: config.node_id.clone(),
        timing: backplane::Timing::default(),
        limits: backplane::InboundLimits::default(),
        observed: observed.clone(),
        tasks: tracker,
        stop,
    };
    let url = config.redis_url.as_ref().map(Secret::expose);
    let joined = backplane::open(url, settings).await?;
    let tasks_end = tasks.clone();
    tasks.spawn(async move {
        let mut ticks = tokio::time::interval(COUNT_EVERY);
        loop {
            tokio::select! {
                _ = ticks.tick() => metrics.take_from_backplane(&observed),
                () = tasks_end.ending() => return,
            }
        }
    });
    Ok(joined)
}

/// The copy that Litestream keeps, if it is there, with its age followed.
fn replica(config: &Config, tasks: &Tasks, metrics: &Arc<Metrics>) -> anyhow::Result<Option<Arc<Replica>>> {
    let Some(settings) = &config.replica else { return Ok(None) };
    let Database::Sqlite { path, .. } = &config.database else {
        anyhow::bail!("Litestream copies SQLite databases; PostgreSQL has replicas of its own");
    };
    let replica = Arc::new(Replica::new(settings.clone(), path, metrics.clone())?);
    tasks.spawn(replica.clone().watch(tasks.clone()));
    Ok(Some(replica))
}

/// TLS on the main port, if it is configured, with its files followed.
fn tls(config: &Config, tasks: &Tasks) -> anyhow::Result<Option<net::Tls>> {
    let Some(files) = &config.tls else { return Ok(None) };
    let tls = net::Tls::new(files.load().map_err(|unfit| anyhow::anyhow!("{unfit}"))?)?;
    tasks.spawn(tls.clone().follow(files.clone(), tasks.clone()));
    Ok(Some(tls))
}

/// What the store enforces.
pub fn bounds(config: &Config) -> Bounds {
    Bounds {
        merge: merge::Limits { state_bytes_max: config.limits.state_bytes, ..merge::Limits::default() },
        keys_per_user: config.limits.keys_per_user,
        bytes_per_user: config.limits.user_bytes,
        devices_per_user: config.limits.devices_per_user,
    }
}

fn socket_settings(config: &Config) -> socket::Settings {
    socket::Settings {
        ping_interval: config.ping_interval,
        ping_timeout: config.ping_timeout,
        frame_bytes: config.limits.frame_bytes,
        realtime_bytes: config.limits.realtime_bytes,
        message_bytes: config.limits.message_bytes,
    }
}

/// What the command line works with: the configured database, without a node.
///
/// # Errors
/// When the store cannot be opened.
pub async fn operator(config: &Config) -> anyhow::Result<Operator> {
    let secret = secret(config, &mut Vec::new())?;
    let previous = config.jwt_secret_previous.as_ref();
    Ok(Operator {
        store: open_store(config).await?,
        tokens: Tokens::new(&secret, previous, config.legacy_tokens),
        refresh_tokens: RefreshTokens::new(&secret, previous),
        hasher: hasher(config)?,
        token_ttl: config.token_ttl,
    })
}

/// The configured database, migrated, without a node.
///
/// # Errors
/// When it cannot be opened.
pub async fn open_store(config: &Config) -> anyhow::Result<Arc<dyn Store>> {
    store::open(&config.database, bounds(config)).await
}

fn hasher(config: &Config) -> anyhow::Result<Hasher> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    // One core stays for everybody who is logged in already.
    Hasher::new(config.bcrypt_cost, cores.saturating_sub(1))
}

/// Tokens of an issuer outside, if there is one.
async fn external_tokens(config: &Config, tasks: &Tasks) -> anyhow::Result<Option<Arc<ExternalTokens>>> {
    let Some(settings) = &config.external_tokens else { return Ok(None) };
    let tokens = Arc::new(ExternalTokens::open(settings.clone()).await?);
    tasks.spawn(tokens.clone().keep_fresh(tasks.clone()));
    Ok(Some(tokens))
}

fn auth_settings(config: &Config) -> auth::Settings {
    auth::Settings {
        token_ttl: config.token_ttl,
        refresh_ttl: config.refresh_ttl,
        registration_open: config.registration_open,
        logins_per_email: config.limits.logins_per_email,
        auth_per_address: config.limits.auth_per_address,
    }
}

fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    if config.allowed_origins.is_empty() {
        warnings.push("pages of any origin may connect; ALLOWED_ORIGINS narrows it".to_owned());
    }
    if let Some(external) = &config.external_tokens {
        if external.audiences.is_empty() {
            warnings.push(
                "JWT_AUDIENCE is not set: any token of JWT_ISSUER is taken, whomever it is for".to_owned(),
            );
        }
        if matches!(&external.keys, Source::Url(url) if url.starts_with("http://")) {
            warnings.push("JWKS is fetched without TLS: who is on the way can sign tokens".to_owned());
        }
    }
    if let Database::Sqlite { full_sync: false, .. } = config.database {
        warnings.push("SQLITE_SYNCHRONOUS=NORMAL: a power cut may lose acked writes".to_owned());
    }
    warnings
}

/// The key that signs tokens: the configured one, or one that this node made
/// and keeps beside its database.
fn secret(config: &Config, warnings: &mut Vec<String>) -> anyhow::Result<Secret> {
    if let Some(secret) = &config.jwt_secret {
        return Ok(secret.clone());
    }
    let Database::Sqlite { path, .. } = &config.database else {
        anyhow::bail!("JWT_SECRET is required with PostgreSQL; all nodes need the same");
    };
    let path = path.parent().unwrap_or(Path::new(".")).join("jwt-secret");
    if let Ok(kept) = std::fs::read_to_string(&path) {
        anyhow::ensure!(
            kept.trim().len() >= 32,
            "{} is damaged; remove it to make a new one",
            path.display()
        );
        return Ok(Secret::new(kept.trim().to_owned()));
    }
    let secret: String = (0..2).map(|_| uuid::Uuid::new_v4().simple().to_string()).collect();
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)?;
    }
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    file.and_then(|mut file| {
        file.write_all(secret.as_bytes())?;
        file.sync_all()
    })
    .with_context(|| format!("cannot keep a new JWT_SECRET in {}", path.display()))?;
    warnings.push(format!("JWT_SECRET is not set: made one and kept it in {}", path.display()));
    Ok(Secret::new(secret))
}

async fn beat(writer: &Writer, boot: BootId, node: &str) -> store::StoreResult<()> {
    writer.submit(Command::Beat { boot, node: node.to_owned(), at: Clock::now() }).await.map(drop)
}

async fn beats(writer: Writer, boot: BootId, node: String, tasks: Tasks) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(BEAT_EVERY) => {}
            () = tasks.ending() => return,
        }
        if let Err(error) = beat(&writer, boot, &node).await {
            tracing::debug!(%error, "a beat was lost");
        }
    }
}

async fn prune(store: Arc<dyn Store>, tasks: Tasks) {
    let retention = Retention::default();
    loop {
        let mut began = Instant::now();
        while let Ok(pruned @ 1..) = store.prune(&retention, Clock::now()).await {
            tracing::debug!(pruned, "old records pruned");
            let rest = began.elapsed() * PRUNE_REST;
            tokio::select! {
                () = tokio::time::sleep(rest) => {}
                () = tasks.ending() => return,
            }
            began = Instant::now();
        }
        tokio::select! {
            () = tokio::time::sleep(PRUNE_EVERY) => {}
            () = tasks.ending() => return,
        }
    }
}

/// The way in: Socket.IO by its path, REST everywhere else.
#[derive(Clone)]
struct Entrance {
    sockets: SocketService,
    rest: axum::Router,
    allowed_origins: Arc<[String]>,
}

impl Service<Request<net::RequestBody>> for Entrance {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<net::RequestBody>) -> Self::Future {
        if !rest::cors::is_welcome(&self.allowed_origins, request.headers()) {
            let failure = Failure::new(Code::OriginNotAllowed, "Pages of this origin may not connect.");
            return std::future::ready(Ok(rest::refused(failure))).boxed();
        }
        if request.uri().path() == PATH || request.uri().path() == PATH.trim_end_matches('/') {
            let answer = self.sockets.call(request);
            return answer.map(|response| response.map(|response| response.map(Body::new))).boxed();
        }
        self.rest.clone().oneshot(request.map(Body::new)).boxed()
    }
}

/// A router as the accept loop wants it.
#[derive(Clone)]
struct Plain(axum::Router);

impl Service<Request<net::RequestBody>> for Plain {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<net::RequestBody>) -> Self::Future {
        self.0.clone().oneshot(request.map(Body::new)).boxed()
    }
}
