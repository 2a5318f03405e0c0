//! Resolving the names of instances, with each address judged.

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

use crate::address_policy::{AddressPolicy, check_ip};

/// The policy, once the client knows it.
pub(super) type PolicyCell = Arc<OnceLock<AddressPolicy>>;

/// Resolves the names of roles. Whether a role is at this name is known before
/// ([`AddressPolicy::check_role`]).
#[derive(Clone, Debug)]
pub(super) struct Resolver {
    /// Where refusals are counted.
    pub(super) policy: PolicyCell,
    /// Whether loopback addresses are this machine's.
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
        let refused = resolve(false, "localhost").await.unwrap_err().to_string();
        assert!(refused.starts_with("not called: ") && refused.contains("loopback"), "{refused}");
        // As `inet_aton` reads an address.
        for number in ["2852039166", "0xa9fea9fe", "0251.0376.0251.0376"] {
            let refused = resolve(true, number).await.unwrap_err().to_string();
            assert!(refused.contains("link-local"), "{number}: {refused}");
        }
    }
}
