//! [`DependencyGraph`]: drawing of services as boxes in layers, each to the right of the services that
//! require it.
//!
//! Layers follow the longest path (Sugiyama, Tagawa and Toda 1981), without the passes that reduce crossings.
//! The drawing only has to show missing services, and a list beside it says the same.

use std::collections::{BTreeMap, BTreeSet};

use hearsay_services::http::Number;

use crate::http::{api::dependencies::Graph, ui::parts::service_link};

/// Maximum number of services in the drawing; missing ones come first. Guess: they fill a screen.
const DRAWN_MAX: usize = 60;
/// Maximum number of services in the list beside the drawing.
const LISTED_MAX: usize = 300;
/// Maximum number of characters of a name in the drawing.
const NAME_CHARS_MAX: usize = 18;

// Sizes in pixels, the units of the drawing.
const BOX_WIDTH: f64 = 168.0;
const BOX_HEIGHT: f64 = 46.0;
const GAP_X: f64 = 56.0;
const GAP_Y: f64 = 16.0;
const MARGIN: f64 = 8.0;

/// The drawing, and the graph as a list.
pub(crate) struct DependencyGraph {
    pub(crate) width: Number,
    pub(crate) height: Number,
    pub(crate) boxes: Vec<ServiceBox>,
    pub(crate) arrows: Vec<Arrow>,
    pub(crate) list: Vec<DependentItem>,
    /// Description for screen readers.
    pub(crate) description: String,
    /// Services that are not in the drawing.
    pub(crate) more: usize,
    /// Required services without a passing instance.
    pub(crate) missing: usize,
}

/// A service in the drawing.
pub(crate) struct ServiceBox {
    pub(crate) x: Number,
    pub(crate) y: Number,
    pub(crate) width: Number,
    pub(crate) height: Number,
    pub(crate) text_x: Number,
    pub(crate) name_y: Number,
    pub(crate) state_y: Number,
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) state: String,
    pub(crate) is_missing: bool,
}

/// An arrow from a service to one that it requires.
pub(crate) struct Arrow {
    pub(crate) path: String,
    /// Points of the arrowhead.
    pub(crate) head: String,
    pub(crate) is_missing: bool,
}

/// A service and the services that it requires, in the list.
pub(crate) struct DependentItem {
    pub(crate) name: String,
    pub(crate) link: Option<String>,
    pub(crate) requires: Vec<Required>,
}

/// A required service, in the list.
pub(crate) struct Required {
    pub(crate) name: String,
    pub(crate) link: Option<String>,
    pub(crate) is_missing: bool,
    pub(crate) state: String,
}

impl DependencyGraph {
    /// Draws the services that require another one or are required.
    pub(crate) fn of(graph: &Graph) -> Self {
        let required: BTreeSet<&str> =
            graph.services.values().flat_map(|service| service.requires.iter().map(String::as_str)).collect();
        let takes_part = |name: &str| required.contains(name) || !graph.services[name].requires.is_empty();
        let mut names: Vec<&str> =
            graph.services.keys().map(String::as_str).filter(|name| takes_part(name)).collect();
        let all = names.len();
        names.sort_by_key(|name| !graph.is_missing(name));
        names.truncate(DRAWN_MAX);
        names.sort_unstable();
        let layout = Layout::of(&names, graph);
        let missing = required.iter().filter(|name| graph.is_missing(name)).count();
        Self {
            width: Number(layout.width()),
            height: Number(layout.height()),
            boxes: (0..names.len()).map(|i| layout.service_box(i, names[i], graph)).collect(),
            arrows: layout
                .edges
                .iter()
                .map(|(a, b)| layout.arrow(*a, *b, graph.is_missing(names[*b])))
                .collect(),
            list: list(graph),
            description: format!("{all} services. Required without a passing instance: {missing}."),
            more: all - names.len(),
            missing,
        }
    }
}

fn list(graph: &Graph) -> Vec<DependentItem> {
    let required = |name: &String| Required {
        name: name.clone(),
        link: service_link(name),
        is_missing: graph.is_missing(name),
        state: state_of(name, graph),
    };
    let dependents = graph.services.iter().filter(|(_, service)| !service.requires.is_empty());
    dependents
        .take(LISTED_MAX)
        .map(|(name, service)| DependentItem {
            name: name.clone(),
            link: service_link(name),
            requires: service.requires.iter().map(required).collect(),
        })
        .collect()
}

fn state_of(name: &str, graph: &Graph) -> String {
    match graph.services.get(name) {
        Some(service) if service.instances > 0 && service.passing == 0 => {
            format!("missing: 0 of {} passing", service.instances)
        }
        Some(service) if service.passing > 0 => {
            format!("{} of {} passing", service.passing, service.instances)
        }
        _ => "missing: no instance".to_owned(),
    }
}

/// Places of the services in the drawing.
struct Layout {
    /// Column and row of each.
    places: Vec<(usize, usize)>,
    /// The rows of each column.
    rows: Vec<usize>,
    edges: Vec<(usize, usize)>,
}

impl Layout {
    fn of(names: &[&str], graph: &Graph) -> Self {
        let index: BTreeMap<&str, usize> = names.iter().enumerate().map(|(i, name)| (*name, i)).collect();
        let requires = |i: usize| {
            let service = graph.services.get(names[i]);
            service
                .into_iter()
                .flat_map(|service| &service.requires)
                .filter_map(|name| index.get(name.as_str()).copied())
        };
        let edges: Vec<(usize, usize)> =
            (0..names.len()).flat_map(|i| requires(i).map(move |to| (i, to))).collect();
        let layers = layers(names.len(), &edges);
        let mut rows = vec![0; layers.iter().max().map_or(0, |last| last + 1)];
        let mut places = vec![(0, 0); names.len()];
        for (column, height) in rows.iter_mut().enumerate() {
            let mut here: Vec<usize> = (0..names.len()).filter(|i| layers[*i] == column).collect();
            // A service is placed next to the first one that requires it, so that fewer arrows cross.
            here.sort_by_key(|i| {
                let dependents = edges.iter().filter(|(from, to)| to == i && layers[*from] < column);
                (dependents.map(|(from, _)| places[*from].1).min(), *i)
            });
            for i in here {
                places[i] = (column, *height);
                *height += 1;
            }
        }
        Self { places, rows, edges }
    }

    fn width(&self) -> f64 {
        let columns = self.rows.len() as f64;
        2.0 * MARGIN + columns * BOX_WIDTH + (columns - 1.0).max(0.0) * GAP_X
    }

    fn height(&self) -> f64 {
        let rows = self.rows.iter().copied().max().unwrap_or(0) as f64;
        2.0 * MARGIN + rows * BOX_HEIGHT + (rows - 1.0).max(0.0) * GAP_Y
    }

    /// Returns the upper left corner of a box. Columns are centred.
    fn corner(&self, i: usize) -> (f64, f64) {
        let (column, row) = self.places[i];
        let rows = self.rows[column] as f64;
        let top = (self.height() - rows * BOX_HEIGHT - (rows - 1.0) * GAP_Y) / 2.0;
        (MARGIN + column as f64 * (BOX_WIDTH + GAP_X), top + row as f64 * (BOX_HEIGHT + GAP_Y))
    }

    fn service_box(&self, i: usize, name: &str, graph: &Graph) -> ServiceBox {
        let (x, y) = self.corner(i);
        let mut label: String = name.chars().take(NAME_CHARS_MAX).collect();
        if name.chars().count() > NAME_CHARS_MAX {
            label.pop();
            label.push('…');
        }
        let state = state_of(name, graph);
        ServiceBox {
            x: Number(x),
            y: Number(y),
            width: Number(BOX_WIDTH),
            height: Number(BOX_HEIGHT),
            text_x: Number(x + 12.0),
            name_y: Number(y + 20.0),
            state_y: Number(y + 36.0),
            name: label,
            title: format!("{name}: {state}"),
            state,
            is_missing: graph.is_missing(name),
        }
    }

    fn arrow(&self, from: usize, to: usize, is_missing: bool) -> Arrow {
        let ((ax, ay), (bx, by)) = (self.corner(from), self.corner(to));
        let (x1, y1, x2, y2) = (ax + BOX_WIDTH, ay + BOX_HEIGHT / 2.0, bx, by + BOX_HEIGHT / 2.0);
        // An arrow that leads back, in a cycle, passes below the boxes.
        let (reach, sink) = if x2 > x1 { ((x2 - x1) / 2.0, 0.0) } else { (GAP_X / 2.0, BOX_HEIGHT) };
        let [x1_, y1_, x2_, y2_] = [x1, y1, x2, y2].map(Number);
        let [c1x, c1y, c2x, c2y] = [x1 + reach, y1 + sink, x2 - reach, y2 + sink].map(Number);
        let [back, above, below] = [x2 - 7.0, y2 - 4.0, y2 + 4.0].map(Number);
        Arrow {
            path: format!("M{x1_} {y1_}C{c1x} {c1y} {c2x} {c2y} {x2_} {y2_}"),
            head: format!("{back},{above} {x2_},{y2_} {back},{below}"),
            is_missing,
        }
    }
}

/// Returns the layer of each service: one more than the highest layer of the services that require it. Edges
/// that close a cycle do not count.
fn layers(count: usize, edges: &[(usize, usize)]) -> Vec<usize> {
    let is_required = |i: &usize| edges.iter().any(|(_, to)| to == i);
    let mut order: Vec<usize> = (0..count).collect();
    // The walk begins at services that no other service requires, so that it breaks cycles at their last
    // edge.
    order.sort_by_key(is_required);
    let mut walk = Walk { edges, state: vec![Visit::New; count], forward: Vec::new() };
    order.into_iter().for_each(|i| walk.visit(i));
    let mut layers = vec![0; count];
    for _ in 0..count {
        for (from, to) in &walk.forward {
            layers[*to] = layers[*to].max(layers[*from] + 1);
        }
    }
    layers
}

#[derive(Clone, Copy, PartialEq)]
enum Visit {
    New,
    Open,
    Done,
}

/// A depth-first search, at most [`DRAWN_MAX`] deep.
struct Walk<'a> {
    edges: &'a [(usize, usize)],
    state: Vec<Visit>,
    /// Edges that do not close a cycle.
    forward: Vec<(usize, usize)>,
}

impl Walk<'_> {
    fn visit(&mut self, i: usize) {
        if self.state[i] != Visit::New {
            return;
        }
        self.state[i] = Visit::Open;
        let edges = self.edges;
        for edge in edges.iter().filter(|(from, _)| *from == i) {
            if self.state[edge.1] != Visit::Open {
                self.forward.push(*edge);
                self.visit(edge.1);
            }
        }
        self.state[i] = Visit::Done;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(services: &[(&str, usize, usize, &[&str])]) -> Graph {
        let mut graph = Graph::default();
        for (name, instances, passing, requires) in services {
            let service = graph.services.entry((*name).to_owned()).or_default();
            (service.instances, service.passing) = (*instances, *passing);
            service.requires = requires.iter().map(|name| (*name).to_owned()).collect();
            requires.iter().for_each(|name| _ = graph.services.entry((*name).to_owned()).or_default());
        }
        graph
    }

    #[test]
    fn a_service_stands_to_the_right_of_those_that_require_it() {
        let graph = graph(&[
            ("alone", 1, 1, &[]),
            ("cache", 1, 1, &["db"]),
            ("db", 2, 0, &[]),
            ("web", 1, 1, &["cache", "db", "mail"]),
        ]);
        let drawn = DependencyGraph::of(&graph);
        let place = |name: &str| drawn.boxes.iter().find(|b| b.name == name).map(|b| b.x.0);
        assert!(place("web") < place("cache") && place("cache") < place("db"));
        assert_eq!(place("alone"), None, "it requires nothing and is not required");
        let missing: Vec<_> = drawn.boxes.iter().filter(|b| b.is_missing).map(|b| b.state.as_str()).collect();
        assert_eq!(missing, ["missing: 0 of 2 passing", "missing: no instance"]);
        assert_eq!((drawn.arrows.len(), drawn.arrows.iter().filter(|a| a.is_missing).count()), (4, 3));
        assert_eq!((drawn.missing, drawn.more), (2, 0));
        assert_eq!(drawn.list.iter().map(|d| d.requires.len()).collect::<Vec<_>>(), [1, 3]);
    }

    #[test]
    fn circles_and_crowds_stay_in_the_frame() {
        let circle = graph(&[("a", 1, 1, &["b"]), ("b", 1, 1, &["c"]), ("c", 1, 1, &["a", "c"])]);
        let names: Vec<String> = (0..200).map(|i| format!("s{i:03}")).collect();
        let mut crowd = Graph::default();
        for pair in names.windows(2) {
            let service = crowd.services.entry(pair[0].clone()).or_default();
            (service.instances, service.passing) = (1, 1);
            service.requires.insert(pair[1].clone());
            crowd.services.entry(pair[1].clone()).or_default();
        }
        for (graph, count) in [(circle, 3), (crowd, DRAWN_MAX), (Graph::default(), 0)] {
            let drawn = DependencyGraph::of(&graph);
            assert_eq!(drawn.boxes.len(), count);
            for b in &drawn.boxes {
                assert!(b.x.0 >= 0.0 && b.x.0 + BOX_WIDTH <= drawn.width.0, "{}", b.title);
                assert!(b.y.0 >= 0.0 && b.y.0 + BOX_HEIGHT <= drawn.height.0, "{}", b.title);
            }
            let corners: BTreeSet<String> = drawn.boxes.iter().map(|b| format!("{} {}", b.x, b.y)).collect();
            assert_eq!(corners.len(), count, "no two at one place");
        }
    }
}
