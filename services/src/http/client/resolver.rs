//! [`Resolver`]: resolves host names for the client, and drops addresses that the address policy forbids.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    vec,
};

use hyper_util::client::legacy::connect::dns::Name;
use tokio::net::lookup_host;
use tower::Service;

use crate::network::address_policy::{AddressPolicy, check_ip};

/// The address policy, which the client's first call sets.
pub(super) type PolicyCell = Arc<OnceLock<AddressPolicy>>;

/// Resolver of the names of roles. [`AddressPolicy::check_role`] has already checked the name.
#[derive(Clone, Debug)]
pub(super) struct Resolver {
    /// Used only to count refusals; empty before the first call.
    pub(super) policy: PolicyCell,
    /// Whether the called instance may have a loopback address, because its node runs on this machine.
    pub(super) allows_loopback: bool,
}

impl Resolver {
    async fn resolve(self, name: Name) -> io::Result<vec::IntoIter<SocketAddr>> {
        let mut allowed = Vec::new();
        let mut refusal = None;
        for address in lookup_host((name.as_str(), 0)).await? {
            match check_ip(address.ip(), self.allows_loopback) {
                Ok(_) => allowed.push(address),
                Err(rule) => refusal = Some(rule),
            }
        }
        match refusal.filter(|_| allowed.is_empty()) {
            Some(rule) => {
                self.policy.get().into_iter().for_each(|policy| policy.count(rule));
                Err(io::Error::other(format!("not called: {rule}")))
            }
            None => Ok(allowed.into_iter()),
        }
    }
}

impl Service<Name> for Resolver {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(self.clone().resolve(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn resolve(allows_loopback: bool, name: &str) -> io::Result<Vec<SocketAddr>> {
        let resolver = Resolver { policy: PolicyCell::default(), allows_loopback };
        resolver.resolve(name.parse().unwrap()).await.map(Iterator::collect)
    }

    #[tokio::test]
    async fn what_a_name_resolves_to_is_judged() {
        assert!(!resolve(true, "localhost").await.unwrap().is_empty());
        let error = resolve(false, "localhost").await.unwrap_err().to_string();
        assert!(error.starts_with("not called: ") && error.contains("loopback"), "{error}");
        // Numbers that `inet_aton` reads as addresses.
        for number in ["2852039166", "0xa9fea9fe", "0251.0376.0251.0376"] {
            let error = resolve(true, number).await.unwrap_err().to_string();
            assert!(error.contains("link-local"), "{number}: {error}");
        }
    }
}
