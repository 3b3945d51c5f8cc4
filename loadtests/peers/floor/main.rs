//! The floor: the least that any server with this transport can do for a relayed event. One thread, one epoll;
//! it answers the handshakes and copies each event's frame to the other sockets that showed the same token, one
//! write a socket. No JSON, no accounts, no store, no heartbeat. What a real server costs is quoted as a
//! multiple of this. With `REDIS_PORT` it is the floor of a cluster: one channel a user, one PUBLISH an event.
//! It believes everybody and listens on loopback only.

mod connection;
mod redis;
mod relay;

use clap::Parser;

#[derive(Parser)]
#[command(about = "The bare relay that Tandem's cost is quoted against")]
struct Settings {
    #[arg(long, env = "PORT", default_value_t = 3900)]
    port: u16,
    /// Relay between floors through the Redis on this loopback port.
    #[arg(long, env = "REDIS_PORT")]
    redis_port: Option<u16>,
}

fn main() -> anyhow::Result<()> {
    let settings = Settings::parse();
    relay::Relay::bind(settings.port, settings.redis_port)?.run()
}
