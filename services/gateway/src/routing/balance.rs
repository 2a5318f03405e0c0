//! Load balancing: draws two endpoints at random, and chooses the one with the lower cost (requests in flight
//! times expected latency). Two draws spread the load nearly as evenly as a comparison of all endpoints
//! (Mitzenmacher, 2001). Several gateways do not all prefer the same endpoint.
//!
//! Candidates are, in this order: healthy endpoints that are not ejected; healthy endpoints; all. Endpoints
//! that this request has tried are skipped.

use std::sync::Arc;

use crate::{
    observe::counters::Counters,
    routing::routes::{Group, Member},
    upstream::endpoint::Endpoint,
};

/// Maximum number of random draws before all endpoints are compared. Enough while at most half of a group is
/// skipped.
const DRAWS: usize = 8;

/// Chooses an endpoint that is not in `tried`; `None` if all are. `draw` returns a random number below its
/// argument.
pub(crate) fn choose<'a>(
    group: &'a Group,
    tried: &[Arc<Endpoint>],
    now_ms: u64,
    mut draw: impl FnMut(usize) -> usize,
) -> Option<&'a Member> {
    let is_new = |member: &Member| !tried.iter().any(|t| Arc::ptr_eq(t, &member.endpoint));
    let is_good = |member: &Member| !member.endpoint.outlier.is_ejected(now_ms) && is_new(member);
    let healthy = |at: usize| group.healthy.get(at).and_then(|at| group.members.get(*at));
    let count = group.healthy.len();
    let mut best: Option<&Member> = None;
    if count > 2 {
        for _ in 0..DRAWS {
            let Some(member) = healthy(draw(count)).filter(|member| is_good(member)) else { continue };
            match best {
                None => best = Some(member),
                // The same endpoint again does not count as the second draw.
                Some(first) if Arc::ptr_eq(&first.endpoint, &member.endpoint) => (),
                Some(first) => return Some(cheaper(first, member, now_ms)),
            }
        }
        if best.is_some() {
            return best;
        }
    }
    // Few endpoints or few candidates: examine all, starting at a random one, so that equals get equal
    // shares.
    let from = if count > 1 { draw(count) } else { 0 };
    let rotated = (0..count).filter_map(|i| healthy((from + i) % count));
    for member in rotated.clone().filter(|member| is_good(member)).take(2) {
        best = Some(best.map_or(member, |first| cheaper(first, member, now_ms)));
    }
    let from = if group.members.len() > 1 { draw(group.members.len()) } else { 0 };
    best.or_else(|| rotated.clone().find(|member| is_new(member)))
        .or_else(|| group.members.iter().cycle().skip(from).take(group.members.len()).find(|m| is_new(m)))
}

fn cheaper<'a>(a: &'a Member, b: &'a Member, now_ms: u64) -> &'a Member {
    if b.endpoint.cost(now_ms) < a.endpoint.cost(now_ms) { b } else { a }
}

/// Records a failure, and ejects the endpoint after too many. At most half of a group is ejected: if most
/// endpoints fail, the fault is more likely in the gateway, the network or the request.
pub(crate) fn record_failure(
    group: &Group,
    endpoint: &Arc<Endpoint>,
    weight: u32,
    now_ms: u64,
    counters: &Counters,
) {
    if !endpoint.record_failure(weight, now_ms) {
        return;
    }
    let ejected = group.members.iter().filter(|m| m.endpoint.outlier.is_ejected(now_ms)).count();
    let max = (group.members.len() / 2).max(1);
    if ejected >= max {
        counters.ejections_refused.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        return;
    }
    let length = endpoint.outlier.eject(now_ms);
    counters.ejections.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    tracing::warn!(instance = endpoint.id, url = %endpoint.authority, seconds = length.as_secs_f32(), "instance ejected");
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use hearsay_protocol::Health;

    use super::*;
    use crate::{
        fixture::{group, group_with},
        upstream::outlier::BROKEN,
    };

    /// Returns how often each endpoint is chosen by a thousand requests, none of which ends.
    fn chosen(group: &Group, tried: &[Arc<Endpoint>]) -> BTreeMap<String, usize> {
        let mut random = fastrand::Rng::with_seed(7);
        let mut counts = BTreeMap::new();
        for _ in 0..1000 {
            if let Some(member) = choose(group, tried, 10, |n| random.usize(..n)) {
                *counts.entry(member.endpoint.id.clone()).or_default() += 1;
            }
        }
        counts
    }

    #[test]
    fn equals_are_chosen_equally_often() {
        for n in [2, 3, 10] {
            let counts = chosen(&group(n), &[]);
            assert!(
                counts.len() == n && counts.values().all(|c| (700 / n..1400 / n).contains(c)),
                "{counts:?}"
            );
        }
    }

    #[test]
    fn the_busier_and_the_slower_of_two_is_not_chosen() {
        let busy = group(2);
        busy.members[0].endpoint.start_request();
        assert_eq!(chosen(&busy, &[]), BTreeMap::from([("i1".to_owned(), 1000)]));
        let slow = group(2);
        slow.members[0].endpoint.record_response(Duration::from_millis(1), 10);
        slow.members[1].endpoint.record_response(Duration::from_millis(9), 10);
        assert_eq!(chosen(&slow, &[]), BTreeMap::from([("i0".to_owned(), 1000)]));
    }

    #[test]
    fn ejected_critical_and_tried_endpoints_are_skipped_while_there_is_another() {
        let health = |critical: &[usize]| {
            group_with(4, |i| if critical.contains(&i) { Health::Critical } else { Health::Passing })
        };
        let group = health(&[0]);
        group.members[1].endpoint.outlier.eject(5);
        let keys = |counts: BTreeMap<String, usize>| counts.into_keys().collect::<Vec<_>>();
        assert_eq!(keys(chosen(&group, &[])), ["i2", "i3"]);
        let tried =
            |ids: &[usize]| ids.iter().map(|i| Arc::clone(&group.members[*i].endpoint)).collect::<Vec<_>>();
        assert_eq!(keys(chosen(&group, &tried(&[2]))), ["i3"]);
        assert_eq!(keys(chosen(&group, &tried(&[2, 3]))), ["i1"], "ejected is better than critical");
        assert_eq!(keys(chosen(&group, &tried(&[1, 2, 3]))), ["i0"], "critical is better than none");
        assert!(chosen(&group, &tried(&[0, 1, 2, 3])).is_empty());
        let all_critical = health(&[0, 1, 2, 3]);
        assert_eq!(chosen(&all_critical, &[]).len(), 4, "no healthy one is left: try all");
        assert!(chosen(&Group::default(), &[]).is_empty());
    }

    #[test]
    fn at_most_half_of_a_group_is_ejected() {
        let (group, counters) = (group(5), Counters::default());
        for member in &group.members {
            (0..3).for_each(|_| record_failure(&group, &member.endpoint, BROKEN, 10, &counters));
        }
        assert_eq!(group.members.iter().filter(|m| m.endpoint.outlier.is_ejected(10)).count(), 2);
        let count = |c: &std::sync::atomic::AtomicU64| c.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!((count(&counters.ejections), count(&counters.ejections_refused)), (2, 3));
    }
}
