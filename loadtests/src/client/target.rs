//! Where the nodes are. Loopback only: a load generator pointed at somebody else's host is an attack.

use std::net::{SocketAddr, ToSocketAddrs};

use anyhow::{Context, bail, ensure};

/// The nodes of one server, in the order given.
#[derive(Clone, Debug)]
pub struct Target {
    pub nodes: Vec<SocketAddr>,
}

impl Target {
    /// # Errors
    /// Names the first URL that is no `http://` URL of a loopback address.
    pub fn parse(urls: &[String]) -> anyhow::Result<Self> {
        ensure!(!urls.is_empty(), "no --url given");
        let nodes = urls.iter().map(|url| parse_url(url)).collect::<anyhow::Result<_>>()?;
        Ok(Self { nodes })
    }
}

fn parse_url(url: &str) -> anyhow::Result<SocketAddr> {
    let Some(rest) = url.strip_prefix("http://") else {
        bail!("{url}: only http:// URLs (TLS would measure the TLS library)");
    };
    let authority = rest.trim_end_matches('/');
    ensure!(!authority.contains('/'), "{url}: no path, the protocol has its own");
    let with_port = if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") };
    let address = with_port
        .to_socket_addrs()
        .with_context(|| format!("{url}: not a host and port"))?
        // `localhost` may mean ::1 first, where nobody listens.
        .min_by_key(SocketAddr::is_ipv6)
        .with_context(|| format!("{url}: no address"))?;
    ensure!(address.ip().is_loopback(), "{url}: not loopback; load is for a machine of your own");
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> anyhow::Result<Target> {
        Target::parse(&[url.to_owned()])
    }

    #[test]
    fn loopback_is_accepted() {
        assert_eq!(parse("http://127.0.0.1:3001").unwrap().nodes, ["127.0.0.1:3001".parse().unwrap()]);
        assert_eq!(parse("http://localhost:3001/").unwrap().nodes, ["127.0.0.1:3001".parse().unwrap()]);
    }

    #[test]
    fn everything_else_is_refused() {
        for url in
            ["http://192.0.2.1:3001", "https://127.0.0.1:3001", "127.0.0.1:3001", "http://127.0.0.1:3001/x"]
        {
            assert!(parse(url).is_err(), "{url}");
        }
        assert!(Target::parse(&[]).is_err());
    }
}
