//! Traces: one from a client's event through its commit, Redis and the delivery on another node, sent to an OTLP
//! collector.
//!
//! Which events are traced is decided where a trace begins; what is not costs one comparison, and nothing where no
//! collector is set. A trace travels as [`Context`]: in a queued command inside the process, as a W3C `traceparent`
//! between nodes (Trace Context, <https://www.w3.org/TR/trace-context/>).

use std::sync::OnceLock;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider,
};
use opentelemetry::{Context as OtelContext, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};
use tracing::Span;
use tracing::field::Empty;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::model::Secret;

/// Spans for the collector, told apart by this from those that log lines show.
pub const TARGET: &str = "tandem::traces";

/// How long one export may take.
const EXPORT_WITHIN: Duration = Duration::from_secs(5);

/// How long the last spans may take when the process ends.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);

/// Where traces go, and how many.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The collector's base URL; spans go to `/v1/traces` there.
    pub endpoint: String,
    /// Headers of each export, which may hold keys.
    pub headers: Vec<(String, Secret)>,
    /// `service.name`.
    pub service: String,
    /// Share of events that are traced, from 0 to 1.
    pub ratio: f64,
}

/// An event is traced when a random number is below this; set once, where traces are on.
static BELOW: OnceLock<f64> = OnceLock::new();

/// The way to the collector.
pub struct Exporter {
    provider: SdkTracerProvider,
}

impl Exporter {
    /// Starts exporting as `node`, the `service.instance.id`; spans leave in batches, on a thread of their own. Needs to
    /// be inside a runtime.
    ///
    /// # Errors
    /// When the endpoint is no URL.
    pub fn start(settings: &Settings, node: &str) -> anyhow::Result<Self> {
        let headers = settings.headers.iter().map(|(name, value)| (name.clone(), value.expose().to_owned()));
        let client = reqwest::Client::builder().timeout(EXPORT_WITHIN).build()?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(OverTokio { client, runtime: tokio::runtime::Handle::current() })
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", settings.endpoint.trim_end_matches('/')))
            .with_headers(headers.collect())
            .with_timeout(EXPORT_WITHIN)
            .build()?;
        let resource = Resource::builder()
            .with_service_name(settings.service.clone())
            .with_attributes([
                KeyValue::new("service.instance.id", node.to_owned()),
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            ])
            .build();
        // What is not to be traced has been left out before.
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::AlwaysOn)
            .with_batch_exporter(exporter)
            .with_resource(resource)
            .build();
        // A second node in this process, as in tests, shares the decision.
        BELOW.get_or_init(|| settings.ratio);
        Ok(Self { provider })
    }

    /// What turns spans into exported ones.
    pub fn tracer(&self) -> SdkTracer {
        self.provider.tracer("tandem")
    }

    /// Sends what has not left yet; takes no longer than two seconds.
    pub async fn flush(self) {
        let flushed =
            tokio::task::spawn_blocking(move || self.provider.shutdown_with_timeout(FLUSH_WITHIN)).await;
        if !matches!(flushed, Ok(Ok(()))) {
            tracing::warn!("the last traces did not reach the collector");
        }
    }
}

/// Exports over the process's runtime: the exporter's own thread has none.
#[derive(Debug)]
struct OverTokio {
    client: reqwest::Client,
    runtime: tokio::runtime::Handle,
}

#[async_trait]
impl HttpClient for OverTokio {
    async fn send_bytes(&self, request: http::Request<Bytes>) -> Result<http::Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let (head, body) = request.into_parts();
        let sent = async move {
            let request = client.request(head.method, head.uri.to_string()).headers(head.headers).body(body);
            let answer = request.send().await?.error_for_status()?;
            let mut response = http::Response::builder().status(answer.status());
            if let Some(headers) = response.headers_mut() {
                headers.extend(answer.headers().clone());
            }
            Ok::<_, HttpError>(response.body(answer.bytes().await?)?)
        };
        // The exporter's thread waits for it: there is nothing to drain.
        self.runtime.spawn(sent).await?
    }
}

/// A place in a trace: small, and good for any thread, queue or node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    trace: TraceId,
    span: SpanId,
}

impl Context {
    /// Of a W3C `traceparent` whose sender records the trace.
    pub fn parse(traceparent: &str) -> Option<Self> {
        let mut parts = traceparent.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let is_known = version.len() == 2 && version != "ff" && trace.len() == 32 && span.len() == 16;
        let is_sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
        let context = Self { trace: TraceId::from_hex(trace).ok()?, span: SpanId::from_hex(span).ok()? };
        let is_valid = context.trace != TraceId::INVALID && context.span != SpanId::INVALID;
        (is_known && is_sampled && is_valid).then_some(context)
    }

    /// As a W3C `traceparent`.
    pub fn traceparent(&self) -> String {
        format!("00-{}-{}-01", self.trace, self.span)
    }

    /// The trace, as collectors name it.
    pub fn trace_id(&self) -> String {
        self.trace.to_string()
    }

    /// Where the running code is, if that is traced.
    pub fn current() -> Option<Self> {
        if BELOW.get().is_none() { None } else { Self::of(&Span::current()) }
    }

    /// Of a span, if it is traced.
    pub fn of(span: &Span) -> Option<Self> {
        if span.is_disabled() {
            return None;
        }
        let context = span.context();
        let place = context.span().span_context().clone();
        place.is_valid().then(|| Self { trace: place.trace_id(), span: place.span_id() })
    }
}

/// What a span is to its neighbours, in OpenTelemetry's words.
#[derive(Clone, Copy, Debug)]
pub enum Role {
    /// Answers somebody outside.
    Server,
    /// A step of ours.
    Internal,
    /// Sends to other nodes.
    Producer,
    /// Takes from another node.
    Consumer,
}

/// Begins a trace with what a client asked for, or, mostly, with nothing. `parent`: where the client says it belongs,
/// which counts only if it is traced at all.
pub fn begin(name: &str, parent: impl FnOnce() -> Option<Context>) -> Span {
    let Some(below) = BELOW.get() else { return Span::none() };
    if rand::random::<f64>() >= *below {
        return Span::none();
    }
    span(name, Role::Server, parent())
}

/// A step of the trace that `parent` is a place in; nothing if it is none.
pub fn step(name: &str, role: Role, parent: Option<Context>) -> Span {
    // Another node may trace where this one does not.
    if parent.is_none() || BELOW.get().is_none() {
        return Span::none();
    }
    span(name, role, parent)
}

fn span(name: &str, role: Role, parent: Option<Context>) -> Span {
    let kind = match role {
        Role::Server => "server",
        Role::Internal => "internal",
        Role::Producer => "producer",
        Role::Consumer => "consumer",
    };
    let span = tracing::info_span!(
        target: TARGET,
        parent: None,
        "step",
        otel.name = name,
        otel.kind = kind,
        otel.status_code = Empty,
        user.id = Empty,
        device.id = Empty,
        request.id = Empty,
        batch.size = Empty,
        outcome = Empty,
    );
    if let Some(parent) = parent {
        let place =
            SpanContext::new(parent.trace, parent.span, TraceFlags::SAMPLED, true, TraceState::default());
        if let Err(error) = span.set_parent(OtelContext::new().with_remote_span_context(place)) {
            tracing::debug!(%error, "a span has no parent");
        }
    }
    span
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_read_as_it_is_written() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(Context::parse(text).map(|context| context.traceparent()), Some(text.to_owned()));
    }

    #[test]
    fn what_is_no_traceparent_or_not_recorded_is_no_context() {
        for text in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c8031-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319ż-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-zz",
        ] {
            assert_eq!(Context::parse(text), None, "{text}");
        }
    }

    #[test]
    fn without_a_collector_nothing_is_traced() {
        assert!(begin("event", || None).is_disabled());
        assert!(step("step", Role::Internal, None).is_disabled());
        assert_eq!(Context::current(), None);
    }
}
