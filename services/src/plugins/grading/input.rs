//! Parses students and grades from JSON, under the documented names or those of other grade books
//! (`FirstName`, `Score`).

use http::StatusCode;
use serde_json::{Map, Value};

use super::{
    book::GradeType,
    change::{ID_MAX, NewGrade},
};
use crate::Problem;

/// Maximum number of characters of a name.
pub(super) const NAME_CHARS_MAX: usize = 100;
/// Maximum number of characters of a title.
pub(super) const TITLE_CHARS_MAX: usize = 200;
/// Maximum number of grades in one request. Their changes fit into one entry.
pub(super) const GRADES_MAX: usize = 100;

/// A student in a request.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct NewStudent {
    pub(super) id: Option<u64>,
    pub(super) first_name: String,
    pub(super) last_name: String,
    /// `None`: the request does not mention grades.
    pub(super) grades: Option<Vec<NewGrade>>,
}

/// The problem of a field.
fn refuse(field: &str, problem: impl std::fmt::Display) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, format!("{field}: {problem}")).with("field", field)
}

fn object(body: &[u8]) -> Result<Map<String, Value>, Problem> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(Problem::new(StatusCode::BAD_REQUEST, "the body must be a JSON object")),
        Err(error) => Err(Problem::new(StatusCode::BAD_REQUEST, format!("the body is not JSON: {error}"))),
    }
}

/// Returns a field under any of its names. Null counts as absent.
fn field<'a>(fields: &'a Map<String, Value>, names: [&str; 2]) -> Option<&'a Value> {
    names.iter().find_map(|name| fields.get(*name)).filter(|value| !value.is_null())
}

fn known(fields: &Map<String, Value>, known: &[&str]) -> Result<(), Problem> {
    match fields.keys().find(|name| !known.contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => {
            let name: String = name.chars().take(64).collect();
            Err(refuse(&name, format_args!("unknown field; the known ones are {}", known.join(", "))))
        }
    }
}

/// Checks a text of 1 to `max` characters without control characters. Returns it without surrounding white
/// space.
pub(super) fn text(name: &str, text: &str, max: usize) -> Result<String, Problem> {
    let text = text.trim();
    let length = text.chars().count();
    if length == 0 || length > max {
        return Err(refuse(name, format_args!("1 to {max} characters, this has {length}")));
    }
    if text.chars().any(char::is_control) {
        return Err(refuse(name, "must not contain control characters"));
    }
    Ok(text.to_owned())
}

fn text_field(fields: &Map<String, Value>, names: [&str; 2], max: usize) -> Result<String, Problem> {
    match field(fields, names) {
        Some(Value::String(value)) => text(names[0], value, max),
        Some(_) => Err(refuse(names[0], "must be a text")),
        None => Err(refuse(names[0], "is missing")),
    }
}

fn id_field(fields: &Map<String, Value>) -> Result<Option<u64>, Problem> {
    match field(fields, ["id", "ID"]) {
        None => Ok(None),
        Some(value) => match value.as_u64().filter(|id| (1..=ID_MAX).contains(id)) {
            Some(id) => Ok(Some(id)),
            None => Err(refuse("id", format_args!("must be a whole number from 1 to {ID_MAX}"))),
        },
    }
}

/// Checks a score.
pub(super) fn score(value: f64) -> Result<f64, Problem> {
    // NaN is in no range.
    if (0.0..=100.0).contains(&value) {
        // Turns minus zero into zero.
        Ok(value + 0.0)
    } else {
        Err(refuse("score", "must be a number from 0 to 100"))
    }
}

fn grade_of(value: &Map<String, Value>) -> Result<NewGrade, Problem> {
    known(value, &["id", "title", "type", "score", "ID", "Title", "Type", "Score"])?;
    let kind = match field(value, ["type", "Type"]) {
        Some(Value::String(kind)) => kind.parse::<GradeType>().map_err(|problem| refuse("type", problem))?,
        Some(_) => return Err(refuse("type", "must be a text: Quiz, Test, Exam or Homework")),
        None => return Err(refuse("type", "is missing: Quiz, Test, Exam or Homework")),
    };
    let score = match field(value, ["score", "Score"]) {
        // `None` means that the number is too large for a double.
        Some(Value::Number(number)) => score(number.as_f64().unwrap_or(f64::NAN))?,
        Some(_) => return Err(refuse("score", "must be a number from 0 to 100")),
        None => return Err(refuse("score", "is missing: a number from 0 to 100")),
    };
    let title = text_field(value, ["title", "Title"], TITLE_CHARS_MAX)?;
    Ok(NewGrade { id: id_field(value)?, title, kind, score })
}

/// Parses a grade.
///
/// # Errors
/// 400; the problem names the field.
pub(super) fn grade(body: &[u8]) -> Result<NewGrade, Problem> {
    grade_of(&object(body)?)
}

/// Parses a student.
///
/// # Errors
/// 400; the problem names the field.
pub(super) fn student(body: &[u8]) -> Result<NewStudent, Problem> {
    let fields = object(body)?;
    // The average is an output. It is ignored here, so that a client may send back a student that it has
    // read.
    known(
        &fields,
        &["id", "firstName", "lastName", "grades", "average", "ID", "FirstName", "LastName", "Grades"],
    )?;
    let grades = match field(&fields, ["grades", "Grades"]) {
        None => None,
        Some(Value::Array(grades)) if grades.len() <= GRADES_MAX => {
            let read = grades.iter().enumerate().map(|(i, grade)| match grade {
                Value::Object(fields) => grade_of(fields),
                _ => Err(refuse(&format!("grades[{i}]"), "must be an object")),
            });
            Some(read.collect::<Result<Vec<_>, _>>()?)
        }
        Some(Value::Array(_)) => {
            return Err(refuse("grades", format_args!("at most {GRADES_MAX} in one request")));
        }
        Some(_) => return Err(refuse("grades", "must be a list")),
    };
    Ok(NewStudent {
        id: id_field(&fields)?,
        first_name: text_field(&fields, ["firstName", "FirstName"], NAME_CHARS_MAX)?,
        last_name: text_field(&fields, ["lastName", "LastName"], NAME_CHARS_MAX)?,
        grades,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_write_a_student_mean_the_same() {
        let ours = student(br#"{"firstName":" Ada ","lastName":"Lovelace","grades":[{"title":"Essay","type":"homework","score":99.5}]}"#);
        let theirs = student(br#"{"ID":null,"FirstName":"Ada","LastName":"Lovelace","Grades":[{"Title":"Essay","Type":"Homework","Score":99.5}]}"#);
        assert_eq!(ours, theirs);
        assert_eq!(ours.unwrap().first_name, "Ada");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let long = "x".repeat(NAME_CHARS_MAX + 1);
        for (body, words) in [
            (r#"{"firstName":"A"}"#, "lastName: is missing"),
            (r#"{"firstName":"","lastName":"B"}"#, "firstName: 1 to 100 characters"),
            (&format!(r#"{{"firstName":"{long}","lastName":"B"}}"#), "this has 101"),
            (r#"{"firstName":"A\u0000","lastName":"B"}"#, "control characters"),
            (r#"{"firstName":1,"lastName":"B"}"#, "firstName: must be a text"),
            (r#"{"id":0,"firstName":"A","lastName":"B"}"#, "id: must be a whole number from 1"),
            (r#"{"id":9007199254740992,"firstName":"A","lastName":"B"}"#, "id: "),
            (r#"{"firstName":"A","lastName":"B","nick":"C"}"#, "nick: unknown field"),
            (r#"{"firstName":"A","lastName":"B","grades":[1]}"#, "grades[0]"),
            ("[]", "JSON object"),
            ("{", "not JSON"),
        ] {
            let problem = student(body.as_bytes()).unwrap_err();
            assert!(
                problem.status() == 400 && problem.detail().contains(words),
                "{body}: {}",
                problem.detail()
            );
        }
        for (body, words) in [
            (r#"{"title":"T","type":"Quiz","score":100.5}"#, "score: must be a number from 0 to 100"),
            (r#"{"title":"T","type":"Quiz","score":-1}"#, "score: "),
            (r#"{"title":"T","type":"Quiz","score":"9"}"#, "score: "),
            (r#"{"title":"T","type":"Quiz"}"#, "score: is missing"),
            (r#"{"title":"T","type":"Oral","score":1}"#, "type: expected Quiz, Test, Exam or Homework"),
            (r#"{"type":"Quiz","score":1}"#, "title: is missing"),
        ] {
            let problem = grade(body.as_bytes()).unwrap_err();
            assert!(
                problem.status() == 400 && problem.detail().contains(words),
                "{body}: {}",
                problem.detail()
            );
        }
        // Too large for a double.
        assert_eq!(grade(br#"{"title":"T","type":"Quiz","score":1e999}"#).unwrap_err().status(), 400);
    }
}
