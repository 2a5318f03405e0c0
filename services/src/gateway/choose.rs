//! Which instance a request goes to: of two chosen at random, the one that costs less (requests in flight times expected latency).
//! Two choices spread the load nearly as evenly as looking at all (Mitzenmacher, 2001), and gateways that do not know of each other do
//! not all run to the same one.
//!
//! Considered are, in this order: the healthy that are not ejected; the healthy; all. Whoever was tried for this request is left out,
//! while there is another.

use std::sync::Arc;

use super::{
    counters::Counters,
    routes::{Group, Member},
    target::Target,
};

/// Random draws before everybody is looked at: enough while at most half of a group is left out.
const DRAWS: usize = 8;

/// Chooses an instance that is not among those `tried`; `None` when all were. `draw` gives a number below its argument.
pub fn choose<'a>(
    group: &'a Group,
    tried: &[Arc<Target>],
    now_ms: u64,
    mut draw: impl FnMut(usize) -> usize,
) -> Option<&'a Member> {
    let is_new = |member: &Member| !tried.iter().any(|t| Arc::ptr_eq(t, &member.target));
    let is_good = |member: &Member| !member.target.is_ejected(now_ms) && is_new(member);
    let healthy = |at: usize| group.healthy.get(at).and_then(|at| group.members.get(*at));
    let count = group.healthy.len();
    let mut best: Option<&Member> = None;
    if count > 2 {
        for _ in 0..DRAWS {
            let Some(member) = healthy(draw(count)).filter(|member| is_good(member)) else { continue };
            match best {
                None => best = Some(member),
                // The same one drawn twice is no second choice.
                Some(first) if Arc::ptr_eq(&first.target, &member.target) => (),
                Some(first) => return Some(cheaper(first, member, now_ms)),
            }
        }
        if best.is_some() {
            return best;
        }
    }
    // Few, or hardly any that is good: look at all, from a random one on so that equals are chosen equally often.
    let from = if count > 1 { draw(count) } else { 0 };
    let turned = (0..count).filter_map(|i| healthy((from + i) % count));
    for member in turned.clone().filter(|member| is_good(member)).take(2) {
        best = Some(best.map_or(member, |first| cheaper(first, member, now_ms)));
    }
    let from = if group.members.len() > 1 { draw(group.members.len()) } else { 0 };
    best.or_else(|| turned.clone().find(|member| is_new(member)))
        .or_else(|| group.members.iter().cycle().skip(from).take(group.members.len()).find(|m| is_new(m)))
}

fn cheaper<'a>(a: &'a Member, b: &'a Member, now_ms: u64) -> &'a Member {
    if b.target.cost(now_ms) < a.target.cost(now_ms) { b } else { a }
}

/// Notes a failure, and ejects the instance when there were too many and not more than half of its group is ejected already: when
/// most fail, it is more likely the gateway, the network or the request that is wrong.
pub fn blame(group: &Group, target: &Arc<Target>, weight: u32, now_ms: u64, counters: &Counters) {
    if !target.failed(weight, now_ms) {
        return;
    }
    let ejected = group.members.iter().filter(|m| m.target.is_ejected(now_ms)).count();
    let may = (group.members.len() / 2).max(1);
    if ejected >= may {
        counters.ejections_refused.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        return;
    }
    let length = target.eject(now_ms);
    counters.ejections.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    tracing::warn!(instance = target.id, url = %target.authority, seconds = length.as_secs_f32(), "instance ejected");
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use hearsay_protocol::record::Health;

    use super::*;
    use crate::gateway::{
        fixture::{group, group_with},
        target::BROKEN,
    };

    /// How often each instance is chosen in a thousand requests, with none of them ending.
    fn chosen(group: &Group, tried: &[Arc<Target>]) -> BTreeMap<String, usize> {
        let mut random = fastrand::Rng::with_seed(7);
        let mut counts = BTreeMap::new();
        for _ in 0..1000 {
            if let Some(member) = choose(group, tried, 10, |n| random.usize(..n)) {
                *counts.entry(member.target.id.clone()).or_default() += 1;
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
        busy.members[0].target.begin();
        assert_eq!(chosen(&busy, &[]), BTreeMap::from([("i1".to_owned(), 1000)]));
        let slow = group(2);
        slow.members[0].target.answered(Duration::from_millis(1), 10);
        slow.members[1].target.answered(Duration::from_millis(9), 10);
        assert_eq!(chosen(&slow, &[]), BTreeMap::from([("i0".to_owned(), 1000)]));
    }

    #[test]
    fn the_ejected_the_critical_and_the_tried_are_left_out_while_there_is_another() {
        let health = |critical: &[usize]| {
            group_with(4, |i| if critical.contains(&i) { Health::Critical } else { Health::Passing })
        };
        let group = health(&[0]);
        group.members[1].target.eject(5);
        let keys = |counts: BTreeMap<String, usize>| counts.into_keys().collect::<Vec<_>>();
        assert_eq!(keys(chosen(&group, &[])), ["i2", "i3"]);
        let tried =
            |ids: &[usize]| ids.iter().map(|i| Arc::clone(&group.members[*i].target)).collect::<Vec<_>>();
        assert_eq!(keys(chosen(&group, &tried(&[2]))), ["i3"]);
        assert_eq!(keys(chosen(&group, &tried(&[2, 3]))), ["i1"], "ejected is better than critical");
        assert_eq!(keys(chosen(&group, &tried(&[1, 2, 3]))), ["i0"], "critical is better than nobody");
        assert!(chosen(&group, &tried(&[0, 1, 2, 3])).is_empty());
        let all_critical = health(&[0, 1, 2, 3]);
        assert_eq!(chosen(&all_critical, &[]).len(), 4, "no healthy one left: try all");
        assert!(chosen(&Group::default(), &[]).is_empty());
    }

    #[test]
    fn at_most_half_of_a_group_is_ejected() {
        let (group, counters) = (group(5), Counters::default());
        for member in &group.members {
            (0..3).for_each(|_| blame(&group, &member.target, BROKEN, 10, &counters));
        }
        assert_eq!(group.members.iter().filter(|m| m.target.is_ejected(10)).count(), 2);
        let count = |c: &std::sync::atomic::AtomicU64| c.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!((count(&counters.ejections), count(&counters.ejections_refused)), (2, 3));
    }
}
