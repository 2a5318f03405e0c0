//! [`Drawing`] of the connections between members: members on a circle, connections as lines through it.
//!
//! A node knows its own connections and draws them as they are. The connections of other members are computed
//! from the table by the rule that every node follows (see `membership/overlay.rs` of the protocol), and are
//! drawn lighter.

use std::{
    collections::{BTreeMap, BTreeSet},
    f64::consts::TAU,
};

use hearsay_protocol::{Config, Member, MemberState, NodeId, Overlay};
use hearsay_services::http::Number;

/// Maximum number of members with a dot of their own; the others share one dot.
const DRAWN_MAX: usize = 60;
/// Maximum number of members for which names are horizontal. The names of more members are arranged like
/// rays.
const LEVEL_MAX: usize = 16;
/// Maximum number of characters of a name in the drawing.
const NAME_CHARS_MAX: usize = 14;

// Sizes in units of the drawing.
const WIDTH: f64 = 420.0;
const CENTRE_X: f64 = WIDTH / 2.0;

/// A member in the drawing.
pub(crate) struct DrawnMember {
    id: NodeId,
    name: String,
    state: MemberState,
}

impl DrawnMember {
    pub(crate) fn of(member: &Member) -> Self {
        Self { id: member.id, name: member.name.clone(), state: member.state }
    }
}

/// A dot with its name.
pub(crate) struct Dot {
    pub(crate) x: Number,
    pub(crate) y: Number,
    pub(crate) radius: Number,
    pub(crate) state: &'static str,
    pub(crate) is_me: bool,
    pub(crate) is_gone: bool,
    /// Whether the dot represents all members without a dot of their own.
    pub(crate) is_many: bool,
    /// Full name and state.
    pub(crate) title: String,
    pub(crate) label: String,
    pub(crate) label_x: Number,
    pub(crate) label_y: Number,
    pub(crate) anchor: &'static str,
    /// Rotation of the label around its own point, in degrees.
    pub(crate) turn: Number,
}

/// A line from dot to dot, bent towards the middle, as a path.
pub(crate) struct Link {
    pub(crate) path: String,
    pub(crate) own: bool,
}

/// The drawing.
pub(crate) struct Drawing {
    pub(crate) height: Number,
    pub(crate) crowded: bool,
    pub(crate) dots: Vec<Dot>,
    pub(crate) links: Vec<Link>,
    /// Whether the drawing has the computed connections of other members.
    pub(crate) computed: bool,
    /// Description for screen readers.
    pub(crate) description: String,
}

impl Drawing {
    /// Draws members, which are in the order of importance. Those beyond [`DRAWN_MAX`] share a dot, except
    /// this node and its neighbours.
    pub(crate) fn of(me: NodeId, members: Vec<DrawnMember>, neighbours: &BTreeSet<NodeId>) -> Self {
        let all = members.len();
        let (mut drawn, rest) = select_drawn(me, members, neighbours);
        // Sorted by name, so that a member keeps its place when its state changes.
        drawn.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        let is_many = rest > 0;
        let places = drawn.len() + usize::from(is_many);
        let circle = Circle::of(places);
        let mut dots: Vec<Dot> = drawn.iter().enumerate().map(|(i, part)| circle.dot(i, part, me)).collect();
        if is_many {
            dots.push(circle.many(places - 1, rest));
        }
        let place: BTreeMap<NodeId, usize> = drawn.iter().enumerate().map(|(i, part)| (part.id, i)).collect();
        let computed = if is_many { BTreeSet::new() } else { watch_edges(me, &drawn) };
        let own: BTreeSet<(NodeId, NodeId)> = neighbours.iter().map(|n| edge(me, *n)).collect();
        let lines = computed.difference(&own).map(|e| (e, false)).chain(own.iter().map(|e| (e, true)));
        let links = lines.filter_map(|((a, b), own)| {
            Some(Link { path: circle.path(*place.get(a)?, *place.get(b)?), own })
        });
        let links: Vec<Link> = links.collect();
        let connected = links.iter().filter(|link| link.own).count();
        Self {
            height: Number(circle.height()),
            crowded: circle.crowded(),
            dots,
            links,
            computed: !is_many,
            description: format!("{all} members; this node is connected to {connected} of them."),
        }
    }
}

/// Returns the members with a dot of their own, and the number of the others.
fn select_drawn(
    me: NodeId,
    members: Vec<DrawnMember>,
    neighbours: &BTreeSet<NodeId>,
) -> (Vec<DrawnMember>, usize) {
    if members.len() <= DRAWN_MAX {
        return (members, 0);
    }
    let all = members.len();
    let (mut first, others): (Vec<DrawnMember>, Vec<DrawnMember>) =
        members.into_iter().partition(|part| part.id == me || neighbours.contains(&part.id));
    first.truncate(DRAWN_MAX - 1);
    let room = DRAWN_MAX - 1 - first.len();
    first.extend(others.into_iter().take(room));
    let rest = all - first.len();
    (first, rest)
}

fn edge(a: NodeId, b: NodeId) -> (NodeId, NodeId) {
    (a.min(b), a.max(b))
}

/// Computes from the table which connections the members should have.
fn watch_edges(me: NodeId, members: &[DrawnMember]) -> BTreeSet<(NodeId, NodeId)> {
    let config = Config::default();
    let mut overlay = Overlay::new(me, config.watchers, config.full_mesh_max);
    let present: Vec<NodeId> = members.iter().filter(|m| m.state.is_present()).map(|m| m.id).collect();
    if present.len() <= config.full_mesh_max {
        return present
            .iter()
            .flat_map(|a| present.iter().filter(move |b| a < b).map(|b| edge(*a, *b)))
            .collect();
    }
    for member in members.iter().filter(|m| m.state != MemberState::Left) {
        overlay.set(member.id, true, member.state == MemberState::Alive);
    }
    present
        .iter()
        .flat_map(|subject| overlay.watchers_of(*subject).map(|watcher| edge(*subject, watcher)))
        .collect()
}

/// Places on the circle.
struct Circle {
    places: usize,
    radius_x: f64,
    radius_y: f64,
}

impl Circle {
    fn of(places: usize) -> Self {
        match places {
            // A single member is in the middle.
            0 | 1 => Self { places: 1, radius_x: 0.0, radius_y: 40.0 },
            2..=LEVEL_MAX => Self { places, radius_x: 118.0, radius_y: 60.0 + 5.0 * places as f64 },
            _ => Self { places, radius_x: 124.0, radius_y: 124.0 },
        }
    }

    fn crowded(&self) -> bool {
        self.places > LEVEL_MAX
    }

    fn height(&self) -> f64 {
        2.0 * (self.radius_y + if self.crowded() { 84.0 } else { 34.0 })
    }

    /// Returns the angle of a place, clockwise from the top.
    fn angle(&self, place: usize) -> f64 {
        TAU * place as f64 / self.places as f64 - TAU / 4.0
    }

    fn point(&self, place: usize, further: f64) -> (f64, f64) {
        let angle = self.angle(place);
        if self.places == 1 {
            return (CENTRE_X, self.height() / 2.0 + further);
        }
        let (x, y) = (self.radius_x + further, self.radius_y + further);
        (CENTRE_X + x * angle.cos(), self.height() / 2.0 + y * angle.sin())
    }

    fn dot(&self, place: usize, part: &DrawnMember, me: NodeId) -> Dot {
        let mut label: String = part.name.chars().take(NAME_CHARS_MAX).collect();
        if part.name.chars().count() > NAME_CHARS_MAX {
            label.pop();
            label.push('…');
        }
        let title = format!("{}: {}", part.name, part.state);
        let radius = if self.crowded() { 5.0 } else { 8.0 };
        Dot {
            state: part.state.as_str(),
            is_me: part.id == me,
            is_gone: !part.state.is_present(),
            ..self.at(place, radius, label, title)
        }
    }

    fn many(&self, place: usize, rest: usize) -> Dot {
        let radius = if self.crowded() { 9.0 } else { 12.0 };
        Dot {
            is_many: true,
            ..self.at(place, radius, format!("{rest} more"), format!("{rest} more members"))
        }
    }

    fn at(&self, place: usize, radius: f64, label: String, title: String) -> Dot {
        let ((x, y), angle) = (self.point(place, 0.0), self.angle(place));
        let (mut label_x, mut label_y) = self.point(place, radius + 7.0);
        let (side, mut turn) = (angle.cos(), 0.0);
        let beside = if side < 0.0 { "end" } else { "start" };
        let anchor = if self.places == 1 {
            (label_x, label_y) = (CENTRE_X, y + radius + 16.0);
            "middle"
        } else if self.crowded() {
            turn = angle.to_degrees() + if side < 0.0 { 180.0 } else { 0.0 };
            label_y += 3.0;
            beside
        } else if side.abs() < 0.2 {
            // Above and below the circle labels are centred; beside it they begin or end at the dot.
            label_y += 4.0 + 6.0 * angle.sin().max(-0.3);
            "middle"
        } else {
            label_y += 4.0;
            beside
        };
        Dot {
            x: Number(x),
            y: Number(y),
            radius: Number(radius),
            state: "",
            is_me: false,
            is_gone: false,
            is_many: false,
            title,
            label,
            label_x: Number(label_x),
            label_y: Number(label_y),
            anchor,
            turn: Number(turn),
        }
    }

    fn path(&self, a: usize, b: usize) -> String {
        let ((ax, ay), (bx, by)) = (self.point(a, 0.0), self.point(b, 0.0));
        let centre_y = self.height() / 2.0;
        let bend = |from: f64, to: f64, centre: f64| Number(0.65 * (from + to) / 2.0 + 0.35 * centre);
        let [ax_, ay_, bx_, by_] = [ax, ay, bx, by].map(Number);
        format!("M{ax_} {ay_}Q{} {} {bx_} {by_}", bend(ax, bx, CENTRE_X), bend(ay, by, centre_y))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: usize) -> NodeId {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&(n as u64).to_le_bytes());
        NodeId::from_public_key(key)
    }

    fn members(count: usize) -> Vec<DrawnMember> {
        (0..count)
            .map(|n| DrawnMember { id: id(n), name: format!("n{n:03}"), state: MemberState::Alive })
            .collect()
    }

    fn neighbours(of: impl IntoIterator<Item = usize>) -> BTreeSet<NodeId> {
        of.into_iter().map(id).collect()
    }

    #[test]
    fn everything_stays_in_the_frame() {
        for count in [0, 1, 2, 3, 16, 17, 60, 61, 1000] {
            let drawing = Drawing::of(id(0), members(count), &neighbours(1..4.min(count).max(1)));
            for dot in &drawing.dots {
                let inside = |at: f64, to: f64| (0.0..=to).contains(&at);
                assert!(
                    inside(dot.x.0, WIDTH) && inside(dot.y.0, drawing.height.0),
                    "{count}: {}",
                    dot.title
                );
                assert!(
                    inside(dot.label_x.0, WIDTH) && inside(dot.label_y.0, drawing.height.0),
                    "{count}: {}",
                    dot.title
                );
            }
        }
    }

    #[test]
    fn few_are_all_connected_and_own_connections_are_marked() {
        let drawing = Drawing::of(id(0), members(5), &neighbours([1, 2]));
        assert_eq!(drawing.links.len(), 10, "each member to each other one");
        assert_eq!(drawing.links.iter().filter(|link| link.own).count(), 2);
        assert_eq!(drawing.description, "5 members; this node is connected to 2 of them.");
    }

    #[test]
    fn among_many_each_has_its_watchers() {
        let drawing = Drawing::of(id(0), members(30), &neighbours([]));
        assert!((45..=90).contains(&drawing.links.len()), "{} edges", drawing.links.len());
    }

    #[test]
    fn beyond_the_limit_one_dot_stands_for_the_rest_and_neighbours_are_kept() {
        let drawing = Drawing::of(id(0), members(1000), &neighbours([997, 998, 999]));
        assert_eq!(drawing.dots.len(), DRAWN_MAX);
        assert!(drawing.dots.iter().any(|dot| dot.is_many && dot.label == "941 more"));
        assert_eq!(drawing.links.iter().filter(|link| link.own).count(), 3);
        assert!(!drawing.computed && drawing.links.len() == 3);
    }

    #[test]
    fn the_failed_have_no_connections() {
        let mut members = members(4);
        members[3].state = MemberState::Failed;
        let drawing = Drawing::of(id(0), members, &neighbours([]));
        assert_eq!(drawing.links.len(), 3);
    }
}
