//! Data types of the grade book: [`Student`], [`Grade`] and [`GradeType`].

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize, Serializer, ser::SerializeStruct};

/// Type of a graded work.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum GradeType {
    /// A quiz.
    Quiz,
    /// A test.
    Test,
    /// An exam.
    Exam,
    /// Homework.
    Homework,
}

impl GradeType {
    /// All types.
    pub(crate) const ALL: [Self; 4] = [Self::Quiz, Self::Test, Self::Exam, Self::Homework];
}

impl fmt::Display for GradeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quiz => "Quiz",
            Self::Test => "Test",
            Self::Exam => "Exam",
            Self::Homework => "Homework",
        })
    }
}

/// The text is not a grade type.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("expected Quiz, Test, Exam or Homework")]
pub(crate) struct NotAGradeType;

impl FromStr for GradeType {
    type Err = NotAGradeType;
    fn from_str(text: &str) -> Result<Self, NotAGradeType> {
        let same = |kind: &Self| kind.to_string().eq_ignore_ascii_case(text);
        Self::ALL.into_iter().find(same).ok_or(NotAGradeType)
    }
}

/// A grade of a student.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Grade {
    /// Unique for the student.
    pub id: u64,
    /// Title of the graded work.
    pub title: String,
    /// Type of the graded work.
    #[serde(rename = "type")]
    pub kind: GradeType,
    /// From 0 to 100, finite.
    pub score: f64,
}

/// A student.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Student {
    /// Unique in the book.
    pub id: u64,
    /// Given name.
    pub first_name: String,
    /// Family name.
    pub last_name: String,
    /// Grades in the order in which they were added.
    pub grades: Vec<Grade>,
}

impl Student {
    /// A student without grades.
    pub(crate) fn new(id: u64, first_name: &str, last_name: &str) -> Self {
        Self { id, first_name: first_name.to_owned(), last_name: last_name.to_owned(), grades: Vec::new() }
    }

    /// Adds a grade.
    fn graded(mut self, title: &str, kind: GradeType, score: f64) -> Self {
        let id = self.grades.len() as u64 + 1;
        self.grades.push(Grade { id, title: title.to_owned(), kind, score });
        self
    }

    /// Returns given and family name.
    pub(crate) fn full_name(&self) -> String {
        format!("{} {}", self.first_name, self.last_name)
    }

    /// Returns the mean of the scores; `None` without grades.
    pub(crate) fn average(&self) -> Option<f64> {
        let sum: f64 = self.grades.iter().map(|g| g.score).sum();
        if self.grades.is_empty() { None } else { Some(sum / self.grades.len() as f64) }
    }
}

// Not derived, because the average is computed and not stored.
impl Serialize for Student {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut s = serializer.serialize_struct("Student", 5)?;
        s.serialize_field("id", &self.id)?;
        s.serialize_field("firstName", &self.first_name)?;
        s.serialize_field("lastName", &self.last_name)?;
        s.serialize_field("grades", &self.grades)?;
        s.serialize_field("average", &self.average())?;
        s.end()
    }
}

/// The five sample students of `--demo`. The same on all nodes.
pub(crate) fn sample() -> [Student; 5] {
    use GradeType::{Exam, Homework, Quiz, Test};
    [
        Student::new(1, "Nick", "Carter")
            .graded("Quiz 1", Quiz, 85.0)
            .graded("Final Exam", Exam, 94.0)
            .graded("Essay", Homework, 82.0),
        Student::new(2, "Roberto", "Baggio")
            .graded("Quiz 1", Quiz, 100.0)
            .graded("Final Exam", Exam, 100.0)
            .graded("Essay", Homework, 81.0),
        Student::new(3, "Emma", "Stone").graded("Quiz 1", Quiz, 67.0).graded("Midterm", Test, 0.0).graded(
            "Final Exam",
            Exam,
            75.5,
        ),
        Student::new(4, "Rachel", "McAdams")
            .graded("Quiz 1", Quiz, 67.0)
            .graded("Midterm", Test, 100.0)
            .graded("Final Exam", Exam, 74.0),
        Student::new(5, "Kelly", "Clarkson")
            .graded("Quiz 1", Quiz, 86.0)
            .graded("Midterm", Test, 77.0)
            .graded("Essay", Homework, 77.0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_of_no_grades_is_null() {
        let student = Student::new(1, "A", "B");
        assert_eq!(serde_json::to_value(&student).unwrap()["average"], serde_json::Value::Null);
    }

    #[test]
    fn ids_count_from_one_in_the_book_and_within_each_student() {
        let book = sample();
        assert!(book.iter().map(|s| s.id).eq(1..=5));
        assert!(book.iter().all(|s| s.grades.iter().map(|g| g.id).eq(1..=3)));
    }
}
