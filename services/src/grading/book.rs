//! The grade book itself: students and their grades, without HTTP.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer, ser::SerializeStruct};

/// What kind of work was graded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub enum GradeType {
    /// A short test.
    Quiz,
    /// A test.
    Test,
    /// An examination.
    Exam,
    /// Work done at home.
    Homework,
}

/// One grade of a student.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Grade {
    /// Unique within its student.
    pub id: u64,
    /// What was graded.
    pub title: String,
    /// Of which kind it was.
    #[serde(rename = "type")]
    pub kind: GradeType,
    /// From 0 to 100, finite.
    pub score: f64,
}

/// A student.
#[derive(Clone, PartialEq, Debug)]
pub struct Student {
    /// Unique within the book.
    pub id: u64,
    /// Given name.
    pub first_name: String,
    /// Family name.
    pub last_name: String,
    /// In the order of their ids.
    pub grades: Vec<Grade>,
}

impl Student {
    /// A student without grades, and without a place in a book.
    fn new(first_name: &str, last_name: &str) -> Self {
        Self { id: 0, first_name: first_name.to_owned(), last_name: last_name.to_owned(), grades: Vec::new() }
    }

    /// With one more grade.
    fn graded(mut self, title: &str, kind: GradeType, score: f64) -> Self {
        let id = self.grades.len() as u64 + 1;
        self.grades.push(Grade { id, title: title.to_owned(), kind, score });
        self
    }

    /// The mean of the scores; `None` without grades.
    pub fn average(&self) -> Option<f64> {
        let sum: f64 = self.grades.iter().map(|g| g.score).sum();
        if self.grades.is_empty() { None } else { Some(sum / self.grades.len() as f64) }
    }
}

// By hand, because the average is computed and never stored.
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

/// Which students a reader asks for.
#[derive(Clone, Copy, Debug)]
pub struct Selection<'a> {
    /// Only those with a higher id.
    pub after: u64,
    /// At most so many.
    pub limit: usize,
    /// Only those whose full name contains this, in either case.
    pub name_part: &'a str,
}

/// The book.
#[derive(Clone, Debug, Default)]
pub struct Book(BTreeMap<u64, Student>);

impl Book {
    /// The five sample students of `--demo`. Fixed in the program, so every node has the same.
    pub fn sample() -> Self {
        use GradeType::{Exam, Homework, Quiz, Test};
        let students = [
            Student::new("Nick", "Carter")
                .graded("Quiz 1", Quiz, 85.0)
                .graded("Final Exam", Exam, 94.0)
                .graded("Essay", Homework, 82.0),
            Student::new("Roberto", "Baggio")
                .graded("Quiz 1", Quiz, 100.0)
                .graded("Final Exam", Exam, 100.0)
                .graded("Essay", Homework, 81.0),
            Student::new("Emma", "Stone").graded("Quiz 1", Quiz, 67.0).graded("Midterm", Test, 0.0).graded(
                "Final Exam",
                Exam,
                75.5,
            ),
            Student::new("Rachel", "McAdams")
                .graded("Quiz 1", Quiz, 67.0)
                .graded("Midterm", Test, 100.0)
                .graded("Final Exam", Exam, 74.0),
            Student::new("Kelly", "Clarkson")
                .graded("Quiz 1", Quiz, 86.0)
                .graded("Midterm", Test, 77.0)
                .graded("Essay", Homework, 77.0),
        ];
        Self((1..).zip(students).map(|(id, student)| (id, Student { id, ..student })).collect())
    }

    /// The students that a reader asks for, in the order of their ids.
    pub fn select(&self, selection: &Selection<'_>) -> Vec<&Student> {
        let name_part = selection.name_part.to_lowercase();
        let matches =
            |s: &&Student| format!("{} {}", s.first_name, s.last_name).to_lowercase().contains(&name_part);
        let after = (std::ops::Bound::Excluded(selection.after), std::ops::Bound::Unbounded);
        self.0.range(after).map(|(_, student)| student).filter(matches).take(selection.limit).collect()
    }

    /// The student with this id.
    pub fn student(&self, id: u64) -> Option<&Student> {
        self.0.get(&id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_of_no_grades_is_null() {
        let student = Student::new("A", "B");
        assert_eq!(serde_json::to_value(&student).unwrap()["average"], serde_json::Value::Null);
    }

    #[test]
    fn ids_count_from_one_in_the_book_and_within_each_student() {
        let book = Book::sample();
        assert_eq!(book.0.keys().copied().collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert!(book.0.values().all(|s| s.grades.iter().map(|g| g.id).eq(1..=3)));
    }
}
