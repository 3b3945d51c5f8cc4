//! A port for programs that cannot bind port 0 and say what they got (redis-server, PostgreSQL).

use std::net::TcpListener;

/// Tries until a port below the kernel's ephemeral range is free, so that no outgoing connection of another test
/// takes it while its owner restarts. The caller still retries when somebody else was quicker.
pub fn free_port() -> u16 {
    loop {
        let candidate = 20_000 + (uuid::Uuid::new_v4().as_u128() % 12_000) as u16;
        if TcpListener::bind(("127.0.0.1", candidate)).is_ok() {
            return candidate;
        }
    }
}
