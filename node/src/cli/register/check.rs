//! Checks as the command line writes them: `http=/health,interval=10s`.
//!
//! `KIND[=TARGET][,OPTION=VALUE]…`. Durations, bounds and targets are passed on as they are written: the node checks them, and completes targets
//! by the address and port of the instance.

use serde_json::{Map, Value, json};

use super::super::listening;

/// Options whose values are numbers.
const NUMBERS: [&str; 3] =
    ["failures_before_warning", "failures_before_critical", "successes_before_passing"];
/// Options whose values are true or false.
const FLAGS: [&str; 2] = ["tls", "tls_skip_verify"];
/// Options whose values are texts.
const TEXTS: [&str; 10] = [
    "id",
    "name",
    "interval",
    "timeout",
    "deregister_after",
    "initial_status",
    "method",
    "body",
    "expect_status",
    "expect_body",
];
/// Options whose values may hold commas.
const FREE_TEXTS: [&str; 5] = ["body", "expect_body", "expect_status", HEADER, "name"];
/// Adds a header to the request, `Name: value`; may be repeated.
const HEADER: &str = "header";

/// Reads a check. Returns the JSON that a node takes.
///
/// # Errors
/// States the mistake and the allowed forms.
pub(crate) fn parse(text: &str) -> Result<Value, String> {
    let wrong = |problem: String| format!("the check {text:?} cannot be read: {problem}");
    let mut parts = split_parts(text).into_iter();
    let first = parts.next().unwrap_or_default();
    let (kind, value) = match first.split_once('=') {
        Some((kind, value)) => (kind.trim(), Some(value.trim()).filter(|value| !value.is_empty())),
        None => (first.trim(), None),
    };
    let needed = |what: &str| value.ok_or_else(|| format!("write {kind}={what}"));
    let stated = match kind {
        // True: of the instance itself.
        "http" | "tcp" | "grpc" | "watch" => Ok(value.map_or(Value::Bool(true), Value::from)),
        "ttl" => needed("DURATION, such as ttl=30s").map(Value::from),
        "alias" => needed("SERVICE or alias=id:ID").map(|target| match target.strip_prefix("id:") {
            Some(id) => json!({ "instance": id }),
            None => target.into(),
        }),
        "process" => needed("PID or process=:PORT").and_then(parse_pid).map(|pid| json!({ "pid": pid })),
        other => Err(format!(
            "there is no kind {other:?}; there are http, tcp, grpc, ttl, alias, watch and process"
        )),
    };
    let mut check = Map::from_iter([(kind.to_owned(), stated.map_err(wrong)?)]);
    for part in parts {
        let (option, value) = match part.split_once('=') {
            Some((option, value)) => (normalise_option(option), value),
            None if FLAGS.contains(&normalise_option(&part).as_str()) => (normalise_option(&part), "true"),
            None => return Err(wrong(format!("write {part}=VALUE"))),
        };
        add_option(&mut check, &option, value).map_err(wrong)?;
    }
    Ok(check.into())
}

/// Cuts at commas. Behind a free text, what follows a comma and is no known option belongs to that text.
fn split_parts(text: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    for part in text.split(',') {
        let is_option = part.split_once('=').is_some_and(|(option, _)| is_known(&normalise_option(option)))
            || FLAGS.contains(&normalise_option(part).as_str());
        let is_free = |last: &&mut String| {
            last.split_once('=')
                .is_some_and(|(option, _)| FREE_TEXTS.contains(&normalise_option(option).as_str()))
        };
        match parts.last_mut().filter(is_free) {
            Some(last) if !is_option => {
                last.push(',');
                last.push_str(part);
            }
            _ => parts.push(part.to_owned()),
        }
    }
    parts
}

/// An option as the node writes it.
fn normalise_option(option: &str) -> String {
    option.trim().replace('-', "_")
}

fn is_known(option: &str) -> bool {
    option == HEADER || NUMBERS.contains(&option) || FLAGS.contains(&option) || TEXTS.contains(&option)
}

fn add_option(check: &mut Map<String, Value>, option: &str, value: &str) -> Result<(), String> {
    let read = if NUMBERS.contains(&option) {
        let number: u32 =
            value.trim().parse().map_err(|_| format!("{option} wants a number, not {value:?}"))?;
        number.into()
    } else if FLAGS.contains(&option) {
        let flag: bool =
            value.trim().parse().map_err(|_| format!("{option} wants true or false, not {value:?}"))?;
        flag.into()
    } else if option == HEADER {
        let (name, value) =
            value.split_once(':').ok_or_else(|| format!("write header=Name: value, not {value:?}"))?;
        let headers = check.entry(HEADER).or_insert_with(|| Value::Object(Map::new()));
        if let Some(headers) = headers.as_object_mut() {
            let values = headers.entry(name.trim()).or_insert_with(|| Value::Array(Vec::new()));
            values.as_array_mut().into_iter().for_each(|values| values.push(value.trim().into()));
        }
        return Ok(());
    } else if TEXTS.contains(&option) {
        value.into()
    } else {
        let known = NUMBERS.iter().chain(&FLAGS).chain(&TEXTS).copied().collect::<Vec<_>>().join(", ");
        return Err(format!("there is no option {option:?}; there are {known} and {HEADER}"));
    };
    match check.insert(option.to_owned(), read) {
        Some(_) => Err(format!("{option} is said twice")),
        None => Ok(()),
    }
}

/// Reads `PID` or `:PORT`, the latter as the process that listens there.
fn parse_pid(text: &str) -> Result<i32, String> {
    match text.strip_prefix(':') {
        Some(port) => {
            let port: u16 = port.parse().map_err(|_| format!("{port:?} is no port"))?;
            listening::pid_at(port).ok_or_else(|| {
                format!("no process that this user may look at listens at port {port}; name it by its pid")
            })
        }
        None => text.parse().ok().filter(|pid| *pid > 0).ok_or_else(|| format!("{text:?} is no pid")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Value {
        parse(text).unwrap()
    }

    #[test]
    fn a_kind_and_its_target_are_passed_on_as_the_node_reads_them() {
        for (text, expected) in [
            ("http=/health?a=b", json!({"http": "/health?a=b"})),
            ("http=https://a.example/", json!({"http": "https://a.example/"})),
            ("http", json!({"http": true})),
            ("tcp=:5432", json!({"tcp": ":5432"})),
            ("watch,interval=5s", json!({"watch": true, "interval": "5s"})),
            ("grpc=/shop.Cart,tls", json!({"grpc": "/shop.Cart", "tls": true})),
            ("ttl=30s", json!({"ttl": "30s"})),
            ("alias=db", json!({"alias": "db"})),
            ("alias=id:db-1", json!({"alias": {"instance": "db-1"}})),
            ("process=42", json!({"process": {"pid": 42}})),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
    }

    #[test]
    fn a_process_is_named_by_the_port_at_which_it_listens() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let check = read(&format!("process=:{}", listener.local_addr().unwrap().port()));
        assert_eq!(check, json!({"process": {"pid": std::process::id()}}));
    }

    #[test]
    fn options_follow_behind_commas_and_values_may_hold_commas() {
        assert_eq!(
            read(
                "http=/health,interval=5s,failures-before-critical=3,header=X-A: 1, 2,expect_body=a,b=c,name=n"
            ),
            json!({"http": "/health", "interval": "5s", "failures_before_critical": 3,
                "header": {"X-A": ["1, 2"]}, "expect_body": "a,b=c", "name": "n"})
        );
        assert_eq!(
            read("http=/a,header=B: 1,header=B: 2")["header"],
            json!({"B": ["1", "2"]}),
            "a header may come twice"
        );
    }

    #[test]
    fn a_check_that_makes_no_sense_says_how_it_is_written() {
        for (text, part) in [
            ("https=/x", "there is no kind \"https\""),
            ("", "there is no kind"),
            ("ttl", "ttl=30s"),
            ("process=x", "no pid"),
            ("process=:0", "port 0"),
            ("process=:x", "no port"),
            ("http=/a,interval", "write interval=VALUE"),
            ("http=/a,failures_before_critical=many", "wants a number"),
            ("http=/a,timeout=1s,intervall=5s", "there is no option \"intervall\""),
            ("http=/a,name=a,name=b", "twice"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
