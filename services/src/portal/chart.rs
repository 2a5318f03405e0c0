//! The drawing of a student's grades: bars from 0 to 100 in the order of the list, and a line for the average. Written on the server as
//! SVG, with the words for those who do not see it; the list beside it says the same in numbers.

use crate::html::Number;

/// Bars in one drawing, the last of the list; more would be too thin to tell apart.
const BARS_MAX: usize = 40;
/// With more bars than this there is no room for their scores.
const SCORES_MAX: usize = 12;

// In units of the drawing, which is 360 by 200.
const LEFT: f64 = 26.0;
const RIGHT: f64 = 352.0;
const TOP: f64 = 18.0;
const BOTTOM: f64 = 176.0;
const BAR_WIDTH_MAX: f64 = 30.0;

/// A grade to draw.
#[derive(Clone, Debug)]
pub(super) struct Bar {
    pub(super) place: usize,
    pub(super) title: String,
    /// Of the stylesheet.
    pub(super) class: &'static str,
    pub(super) score: f64,
}

/// A bar where it stands.
pub(super) struct Drawn {
    pub(super) bar: Bar,
    pub(super) x: Number,
    pub(super) y: Number,
    pub(super) width: Number,
    pub(super) height: Number,
    /// The middle of it.
    pub(super) middle: Number,
    /// Where its score stands.
    pub(super) score_y: Number,
    pub(super) score: Number,
    /// Whether its number stands below it.
    pub(super) numbered: bool,
}

/// A line of the grid, or the average.
pub(super) struct Line {
    pub(super) value: Number,
    pub(super) y: Number,
    /// Where its words stand.
    pub(super) text_y: Number,
}

/// The drawing.
pub(super) struct Chart {
    pub(super) bars: Vec<Drawn>,
    pub(super) grid: Vec<Line>,
    pub(super) average: Option<Line>,
    pub(super) scores: bool,
    pub(super) left: Number,
    pub(super) right: Number,
    /// What it shows, in words.
    pub(super) told: String,
    /// Grades of the list that are not drawn.
    pub(super) omitted: usize,
}

impl Chart {
    /// Draws grades; `None` without any.
    pub(super) fn of(mut bars: Vec<Bar>, average: Option<f64>) -> Option<Self> {
        let omitted = bars.len().saturating_sub(BARS_MAX);
        bars.drain(..omitted);
        let (lowest, highest) =
            bars.iter().fold((f64::MAX, f64::MIN), |(l, h), b| (l.min(b.score), h.max(b.score)));
        let count = bars.len();
        if count == 0 {
            return None;
        }
        let told = format!(
            "{count} {} between {} and {}{}.",
            if count == 1 { "grade" } else { "grades" },
            Number(lowest),
            Number(highest),
            average.map(|average| format!(", average {average:.1}")).unwrap_or_default(),
        );
        let slot = (RIGHT - LEFT) / count as f64;
        let width = (slot * 0.64).min(BAR_WIDTH_MAX);
        let every = count.div_ceil(SCORES_MAX);
        let draw = |(i, bar): (usize, Bar)| {
            let (middle, top) = (LEFT + slot * (i as f64 + 0.5), height_of(bar.score));
            // A score of zero is still to be seen.
            let height = (BOTTOM - top).max(1.5);
            Drawn {
                x: Number(middle - width / 2.0),
                y: Number(BOTTOM - height),
                width: Number(width),
                height: Number(height),
                middle: Number(middle),
                score_y: Number(BOTTOM - height - 5.0),
                score: Number(bar.score),
                numbered: i % every == 0,
                bar,
            }
        };
        Some(Self {
            bars: bars.into_iter().enumerate().map(draw).collect(),
            grid: [0.0, 25.0, 50.0, 75.0, 100.0].map(line_at).into(),
            average: average.map(line_at),
            scores: count <= SCORES_MAX,
            left: Number(LEFT),
            right: Number(RIGHT),
            told,
            omitted,
        })
    }
}

fn height_of(value: f64) -> f64 {
    // A peer may state anything; the drawing stays in its frame.
    let share = if value.is_finite() { value.clamp(0.0, 100.0) / 100.0 } else { 0.0 };
    BOTTOM - share * (BOTTOM - TOP)
}

fn line_at(value: f64) -> Line {
    let y = height_of(value);
    Line { value: Number(value), y: Number(y), text_y: Number(y + 3.5) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bars(scores: impl IntoIterator<Item = f64>) -> Vec<Bar> {
        let bar = |(i, score)| Bar { place: i + 1, title: format!("t{i}"), class: "quiz", score };
        scores.into_iter().enumerate().map(bar).collect()
    }

    #[test]
    fn bars_stay_in_the_frame_whatever_a_node_states() {
        let chart = Chart::of(bars([0.0, 50.0, 100.0, 1e300, -5.0, f64::NAN]), Some(50.0)).unwrap();
        for drawn in &chart.bars {
            assert!(drawn.y.0 >= TOP && (drawn.y.0 + drawn.height.0 - BOTTOM).abs() < 1e-9, "{}", drawn.y);
            assert!(drawn.x.0 >= LEFT && drawn.x.0 + drawn.width.0 <= RIGHT);
        }
        assert!(
            chart.bars[1].height.0 > chart.bars[0].height.0
                && chart.bars[2].height.0 > chart.bars[1].height.0
        );
    }

    #[test]
    fn of_many_grades_the_last_are_drawn() {
        let chart = Chart::of(bars((0..50).map(f64::from)), None).unwrap();
        assert_eq!((chart.bars.len(), chart.omitted, chart.bars[0].bar.place), (40, 10, 11));
        assert!(!chart.scores && chart.told.starts_with("40 grades between 10 and 49"));
    }

    #[test]
    fn without_grades_there_is_no_drawing() {
        assert!(Chart::of(vec![], None).is_none());
    }
}
