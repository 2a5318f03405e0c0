//! [`CatalogCache`]: the catalog that all streams and all requests by REST share, and the task that keeps it
//! up to date.

use std::{
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, Weak},
    time::Duration,
};

use hearsay_protocol::{Index, NodeId, ProviderTable};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::{catalog::Catalog, metrics::XdsMetrics};
use crate::view::View;

/// Interval of readings without a change of the table: measured distances change without one.
const INTERVAL: Duration = Duration::from_secs(10);
/// Pause between two readings of the table, so that a burst of changes is read once.
const COALESCING: Duration = Duration::from_millis(5);
/// Time for which the catalog stays after a request by REST. Envoy asks again each second, or as it is
/// configured.
const KEPT: Duration = Duration::from_secs(60);

/// The catalog of a node, while streams or requests use it.
#[derive(Debug)]
pub(crate) struct CatalogCache {
    me: NodeId,
    view: Arc<View>,
    metrics: Arc<XdsMetrics>,
    shared: Mutex<Weak<Shared>>,
}

impl CatalogCache {
    /// Creates the cache of a node. The table is read when the catalog is used.
    pub(crate) fn new(me: NodeId, view: Arc<View>, metrics: Arc<XdsMetrics>) -> Self {
        Self { me, view, metrics, shared: Mutex::default() }
    }

    /// Returns the catalog for a stream, which keeps it.
    pub(super) fn open(&self) -> Arc<Shared> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = shared.upgrade() {
            return shared;
        }
        let mut catalog = Catalog::new(self.me);
        // Before the table is read, so that no later change is taken for a known one.
        let changes = self.view.subscribe();
        self.view.read(|table| catalog.update(table, Instant::now()));
        let (sender, newest) = watch::channel(catalog.version());
        let new = Arc::new(Shared {
            catalog: RwLock::new(catalog),
            newest,
            view: Arc::clone(&self.view),
            metrics: Arc::clone(&self.metrics),
            kept_until: Mutex::new(None),
        });
        *shared = Arc::downgrade(&new);
        tokio::spawn(keep_up(Arc::clone(&new), changes, sender));
        new
    }

    /// Returns the catalog for a request, up to date. It stays for the next request.
    pub(super) fn open_for_request(&self) -> Arc<Shared> {
        let shared = self.open();
        *shared.kept_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + KEPT);
        shared.refresh();
        shared
    }
}

/// The catalog, and its newest version.
#[derive(Debug)]
pub(super) struct Shared {
    catalog: RwLock<Catalog>,
    pub(super) newest: watch::Receiver<u64>,
    view: Arc<View>,
    metrics: Arc<XdsMetrics>,
    /// Time until which the catalog stays without a stream.
    kept_until: Mutex<Option<Instant>>,
}

impl Shared {
    /// Locks the catalog for reading. A panic while it was written leaves it as of an earlier version.
    pub(super) fn catalog(&self) -> RwLockReadGuard<'_, Catalog> {
        self.catalog.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the changes of the table, if there are any.
    pub(super) fn refresh(&self) {
        let index = self.view.read(ProviderTable::index);
        let position = self.catalog().position();
        if position != Some(index) {
            self.read_changes();
        }
    }

    /// Reads the changes of the table, and returns the newest version.
    fn read_changes(&self) -> u64 {
        let mut catalog = self.catalog.write().unwrap_or_else(PoisonError::into_inner);
        self.view.read(|table| catalog.update(table, Instant::now()));
        self.metrics.set_left_out(catalog.left_out());
        self.metrics.count_removed_early(catalog.take_removed_early());
        catalog.version()
    }

    fn is_kept(&self) -> bool {
        let until = *self.kept_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }
}

/// Reads the changes of the table into the catalog until neither a stream nor a recent request uses it.
async fn keep_up(mut current: Arc<Shared>, mut changes: watch::Receiver<Index>, sender: watch::Sender<u64>) {
    let shared = Arc::downgrade(&current);
    loop {
        let next_removal = current.catalog().next_removal();
        // Held between two requests. After that only streams hold it.
        let kept = current.is_kept().then_some(current);
        let latest = Instant::now() + INTERVAL;
        let next = next_removal.map_or(latest, |at| at.min(latest));
        tokio::select! {
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = sleep_until(next) => (),
            () = sender.closed() => return,
        }
        let Some(upgraded) = shared.upgrade() else { return };
        drop(kept);
        current = upgraded;
        let version = current.read_changes();
        // A stream that has just begun may have read these changes, so the version that was sent decides.
        sender.send_if_modified(|sent| std::mem::replace(sent, version) != version);
        sleep(COALESCING).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        apis::xds::tests::{joined, node, offered},
        metrics::Metrics,
        view::Clock,
    };

    fn cache() -> CatalogCache {
        let view = Arc::new(View::new(Index(1), Clock::start()));
        let metrics = Metrics::new(Arc::clone(&view));
        view.apply(view.clock().now(), [joined(1, "a", None)]);
        CatalogCache::new(node(1), view, Arc::clone(&metrics.xds))
    }

    fn add(cache: &CatalogCache, service: &str) {
        cache.view.apply(cache.view.clock().now(), [offered(1, service, |_| ())]);
    }

    /// Waits until nothing holds the catalog.
    async fn until_dropped(catalog: &Weak<Shared>) {
        let dropped = async {
            while catalog.strong_count() > 0 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), dropped).await.expect("the catalog is dropped");
    }

    #[tokio::test]
    async fn requests_and_streams_share_a_catalog_which_stays_between_requests_for_a_time() {
        let cache = cache();
        let shared = cache.open_for_request();
        let stream = cache.open();
        assert!(Arc::ptr_eq(&shared, &stream));
        let (catalog, mut newest) = (Arc::downgrade(&shared), shared.newest.clone());
        drop((shared, stream));
        // A change makes the task look whether the catalog is in use.
        for service in ["a", "b"] {
            add(&cache, service);
            newest.changed().await.unwrap();
        }
        add(&cache, "web");
        let again = cache.open_for_request();
        assert!(Weak::ptr_eq(&catalog, &Arc::downgrade(&again)));
        assert!(again.catalog().service("web").is_some(), "a request reads what changed, at once");
        *again.kept_until.lock().unwrap() = Some(Instant::now());
        drop(again);
        add(&cache, "c");
        until_dropped(&catalog).await;
        assert!(cache.open_for_request().catalog().service("c").is_some());
    }

    #[tokio::test]
    async fn a_stream_learns_of_changes_and_is_the_last_to_keep_the_catalog() {
        let cache = cache();
        let stream = cache.open();
        let mut newest = stream.newest.clone();
        newest.mark_unchanged();
        add(&cache, "web");
        newest.changed().await.unwrap();
        assert!(stream.catalog().service("web").is_some());
        let catalog = Arc::downgrade(&stream);
        drop(stream);
        until_dropped(&catalog).await;
    }
}
