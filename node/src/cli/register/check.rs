//! Parsing of `--check`: `KIND[=TARGET][,OPTION=VALUE]…`, such as `http=/health,interval=10s`.
//!
//! Durations, bounds and targets are not checked here: the node validates them and completes targets with the
//! address and port of the instance.

use serde_json::{Map, Value, json};

use super::super::listeners;

/// Options whose values are numbers.
const NUMBERS: [&str; 3] =
    ["failures_before_warning", "failures_before_critical", "successes_before_passing"];
/// Options whose values are true or false.
const FLAGS: [&str; 2] = ["tls", "tls_skip_verify"];
/// Options whose values are strings.
const TEXTS: [&str; 11] = [
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
    "tls_server_name",
];
/// Options whose values may contain commas.
const FREE_TEXTS: [&str; 5] = ["body", "expect_body", "expect_status", HEADER, "name"];
/// Option that adds a header to the request, `Name: value`; repeatable.
const HEADER: &str = "header";

/// Parses a check and returns its JSON for the node.
///
/// # Errors
/// Names the mistake and the allowed forms.
pub(crate) fn parse(text: &str) -> Result<Value, String> {
    let wrong = |problem: String| format!("the check {text:?} is invalid: {problem}");
    let mut parts = split_parts(text).into_iter();
    let first = parts.next().unwrap_or_default();
    let (kind, value) = match first.split_once('=') {
        Some((kind, value)) => (kind.trim(), Some(value.trim()).filter(|value| !value.is_empty())),
        None => (first.trim(), None),
    };
    let needed = |what: &str| value.ok_or_else(|| format!("give {kind}={what}"));
    let stated = match kind {
        // `true` means the address of the instance.
        "http" | "tcp" | "udp" | "h2ping" | "grpc" | "watch" => {
            Ok(value.map_or(Value::Bool(true), Value::from))
        }
        "ttl" => needed("DURATION, such as ttl=30s").map(Value::from),
        "alias" => needed("SERVICE or alias=id:ID").map(|target| match target.strip_prefix("id:") {
            Some(id) => json!({ "instance": id }),
            None => target.into(),
        }),
        "process" => needed("PID or process=:PORT").and_then(parse_pid).map(|pid| json!({ "pid": pid })),
        other => Err(format!(
            "there is no kind {other:?}; choose from http, tcp, udp, h2ping, grpc, ttl, alias, watch and process"
        )),
    };
    let mut check = Map::from_iter([(kind.to_owned(), stated.map_err(wrong)?)]);
    for part in parts {
        let (option, value) = match part.split_once('=') {
            Some((option, value)) => (normalise_option(option), value),
            None if FLAGS.contains(&normalise_option(&part).as_str()) => (normalise_option(&part), "true"),
            None => return Err(wrong(format!("give {part}=VALUE"))),
        };
        add_option(&mut check, &option, value).map_err(wrong)?;
    }
    Ok(check.into())
}

/// Splits at commas. After a value that may contain commas, a part that is not an option belongs to the
/// value.
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

/// Returns the node's spelling of an option.
fn normalise_option(option: &str) -> String {
    option.trim().replace('-', "_")
}

fn is_known(option: &str) -> bool {
    option == HEADER || NUMBERS.contains(&option) || FLAGS.contains(&option) || TEXTS.contains(&option)
}

fn add_option(check: &mut Map<String, Value>, option: &str, value: &str) -> Result<(), String> {
    let read = if NUMBERS.contains(&option) {
        let number: u32 =
            value.trim().parse().map_err(|_| format!("{option} needs a number, not {value:?}"))?;
        number.into()
    } else if FLAGS.contains(&option) {
        let flag: bool =
            value.trim().parse().map_err(|_| format!("{option} needs true or false, not {value:?}"))?;
        flag.into()
    } else if option == HEADER {
        let (name, value) =
            value.split_once(':').ok_or_else(|| format!("give header=Name: value, not {value:?}"))?;
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
        return Err(format!("there is no option {option:?}; choose from {known} and {HEADER}"));
    };
    match check.insert(option.to_owned(), read) {
        Some(_) => Err(format!("{option} is given twice; give it once")),
        None => Ok(()),
    }
}

/// Parses `PID`, or `:PORT` as the process that listens there.
fn parse_pid(text: &str) -> Result<i32, String> {
    match text.strip_prefix(':') {
        Some(port) => {
            let port: u16 =
                port.parse().map_err(|_| format!("{port:?} is not a port; give a number from 1 to 65535"))?;
            listeners::pid_at(port).ok_or_else(|| {
                format!("no process that this user can inspect listens at port {port}; give the pid")
            })
        }
        None => text
            .parse()
            .ok()
            .filter(|pid| *pid > 0)
            .ok_or_else(|| format!("{text:?} is not a pid; give a positive number or :PORT")),
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
            (
                "tcp,tls,tls-server-name=a.example",
                json!({"tcp": true, "tls": true, "tls_server_name": "a.example"}),
            ),
            ("udp=:53", json!({"udp": ":53"})),
            ("h2ping,tls=false", json!({"h2ping": true, "tls": false})),
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
    fn an_invalid_check_is_refused_with_an_example() {
        for (text, part) in [
            ("https=/x", "there is no kind \"https\""),
            ("", "there is no kind"),
            ("ttl", "ttl=30s"),
            ("process=x", "not a pid"),
            ("process=:0", "port 0"),
            ("process=:x", "not a port"),
            ("http=/a,interval", "give interval=VALUE"),
            ("http=/a,failures_before_critical=many", "needs a number"),
            ("http=/a,timeout=1s,intervall=5s", "there is no option \"intervall\""),
            ("http=/a,name=a,name=b", "twice"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
