//! Geometry of the chart of a student's scores, which the template `portal/chart.html` draws as SVG. It has a
//! bar from 0 to 100 for each of the last 40 grades, grid lines, a line for the average, and a text
//! alternative. The table beside the chart has the same numbers.

use crate::http::html::Number;

/// Maximum number of bars in one chart. Of a longer list the last ones are drawn; more bars would be too
/// thin.
const BARS_MAX: usize = 40;
/// With more bars than this, scores are not printed.
const SCORES_MAX: usize = 12;

// In units of the view box, 360 by 200.
const LEFT: f64 = 26.0;
const RIGHT: f64 = 352.0;
const TOP: f64 = 18.0;
const BOTTOM: f64 = 176.0;
const BAR_WIDTH_MAX: f64 = 30.0;

/// A grade to be drawn.
#[derive(Clone, Debug)]
pub(super) struct Bar {
    pub(super) number: usize,
    pub(super) title: String,
    /// Class in the stylesheet.
    pub(super) class: &'static str,
    pub(super) score: f64,
}

/// A bar with its geometry.
pub(super) struct DrawnBar {
    pub(super) bar: Bar,
    pub(super) x: Number,
    pub(super) y: Number,
    pub(super) width: Number,
    pub(super) height: Number,
    /// Horizontal center.
    pub(super) middle: Number,
    /// Vertical position of the score.
    pub(super) score_y: Number,
    pub(super) score: Number,
    /// Whether the grade's number is shown below the bar.
    pub(super) numbered: bool,
}

/// A grid line, or the line of the average.
pub(super) struct Line {
    pub(super) value: Number,
    pub(super) y: Number,
    /// Vertical position of its label.
    pub(super) text_y: Number,
}

/// The chart with its geometry, for the template.
pub(super) struct Chart {
    pub(super) bars: Vec<DrawnBar>,
    pub(super) grid: Vec<Line>,
    pub(super) average: Option<Line>,
    pub(super) scores: bool,
    pub(super) left: Number,
    pub(super) right: Number,
    /// Text alternative.
    pub(super) summary: String,
    /// Number of grades that are not drawn.
    pub(super) omitted: usize,
}

impl Chart {
    /// Draws the chart; `None` without grades.
    pub(super) fn of(mut bars: Vec<Bar>, average: Option<f64>) -> Option<Self> {
        let omitted = bars.len().saturating_sub(BARS_MAX);
        bars.drain(..omitted);
        let (lowest, highest) =
            bars.iter().fold((f64::MAX, f64::MIN), |(l, h), b| (l.min(b.score), h.max(b.score)));
        let count = bars.len();
        if count == 0 {
            return None;
        }
        let summary = format!(
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
            // A score of zero stays visible.
            let height = (BOTTOM - top).max(1.5);
            DrawnBar {
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
            summary,
            omitted,
        })
    }
}

fn height_of(value: f64) -> f64 {
    // A peer may send any number; the bar stays inside the chart.
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
        let bar = |(i, score)| Bar { number: i + 1, title: format!("t{i}"), class: "quiz", score };
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
        assert_eq!((chart.bars.len(), chart.omitted, chart.bars[0].bar.number), (40, 10, 11));
        assert!(!chart.scores && chart.summary.starts_with("40 grades between 10 and 49"));
    }

    #[test]
    fn without_grades_there_is_no_drawing() {
        assert!(Chart::of(vec![], None).is_none());
    }
}
