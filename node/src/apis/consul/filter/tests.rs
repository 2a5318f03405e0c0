//! Tests of filter expressions: operators, precedence, errors and bounds.

use serde_json::{Value, json};

use super::{EXPRESSION_BYTES_MAX, Field, Kind, parse};

const FIELDS: [Field; 7] = [
    ("Node", Kind::Text),
    ("ServiceName", Kind::Text),
    ("ServicePort", Kind::Number),
    ("ServiceTags", Kind::Texts),
    ("ServiceMeta", Kind::Map),
    ("Checks.Status", Kind::Text),
    ("Service.Meta", Kind::Map),
];

fn element() -> Value {
    json!({
        "Node": "n1", "ServiceName": "web", "ServicePort": 8080, "ServiceTags": ["v1", "blue one"],
        "ServiceMeta": { "version": "1.2", "a.b": "c", "empty": "" },
        "Checks": [{ "Status": "passing" }, { "Status": "warning" }],
        "Service": { "Meta": { "zone": "east" } },
    })
}

fn accepts(expression: &str) -> bool {
    parse(expression, &FIELDS).unwrap_or_else(|error| panic!("{expression}: {error}")).accepts(&element())
}

#[track_caller]
fn refused(expression: &str) -> String {
    parse(expression, &FIELDS).map(|_| ()).expect_err(expression).to_string()
}

#[test]
fn each_operator_compares_as_it_is_documented() {
    for (expression, expected) in [
        ("Node == n1", true),
        ("Node==\"n1\"", true),
        ("Node == `n1`", true),
        ("Node != n1", false),
        ("ServicePort == 8080", true),
        ("ServicePort == \"8080\"", true),
        ("ServicePort != 80", true),
        ("v1 in ServiceTags", true),
        ("\"blue one\" in ServiceTags", true),
        ("blue in ServiceTags", false),
        ("v2 not in ServiceTags", true),
        ("ServiceTags contains v1", true),
        ("ServiceTags not contains `v1`", false),
        ("eb in ServiceName", true),
        ("ServiceName contains x", false),
        ("ServiceName matches `^w.b$`", true),
        ("ServiceName not matches \"^a\"", true),
        ("ServiceTags is empty", false),
        ("ServiceTags is not empty", true),
        ("version in ServiceMeta", true),
        ("ServiceMeta is not empty", true),
        ("ServiceMeta.version == 1.2", true),
        ("ServiceMeta[\"version\"] == `1.2`", true),
        ("ServiceMeta.a.b == c", true),
        ("Service.Meta.zone != west", true),
    ] {
        assert_eq!(accepts(expression), expected, "{expression}");
    }
}

#[test]
fn a_key_that_is_missing_equals_nothing_and_is_empty() {
    for (expression, expected) in [
        ("ServiceMeta.none == x", false),
        ("ServiceMeta.none != x", true),
        ("x in ServiceMeta.none", false),
        ("x not in ServiceMeta.none", true),
        ("ServiceMeta.none matches x", false),
        ("ServiceMeta.none is empty", true),
        ("ServiceMeta.empty is empty", true),
        ("ServiceMeta.empty == ``", true),
    ] {
        assert_eq!(accepts(expression), expected, "{expression}");
    }
}

#[test]
fn a_list_of_objects_needs_one_that_satisfies_the_test() {
    assert!(accepts("Checks.Status == warning") && accepts("Checks.Status != passing"));
    assert!(!accepts("Checks.Status == critical") && !accepts("not Checks.Status == passing"));
}

#[test]
fn and_binds_closer_than_or_and_not_closest() {
    for (expression, expected) in [
        ("Node == x and Node == n1 or ServiceName == web", true),
        ("Node == x and (Node == n1 or ServiceName == web)", false),
        ("ServiceName == web or Node == x and Node == y", true),
        ("not Node == x and ServiceName == web", true),
        ("not (Node == x or ServiceName == web)", false),
        ("not not Node == n1", true),
        (" ( ( Node == n1 ) ) ", true),
        ("Node == n1\nand\tServiceName == web", true),
    ] {
        assert_eq!(accepts(expression), expected, "{expression}");
    }
}

#[test]
fn quotes_and_backquotes_hold_any_text() {
    let parsed = |expression| parse(expression, &FIELDS).unwrap();
    let with_name = |name: &str| json!({ "ServiceName": name });
    assert!(parsed(r#"ServiceName == "a \"b\" \\ c""#).accepts(&with_name("a \"b\" \\ c")));
    assert!(parsed(r"ServiceName == `a \ b`").accepts(&with_name(r"a \ b")));
    assert!(parsed("ServiceName == \"and (or)\"").accepts(&with_name("and (or)")));
    assert!(parsed("ServiceName == `größe`").accepts(&with_name("größe")));
}

#[test]
fn what_cannot_be_parsed_is_refused_with_its_place() {
    for (expression, word) in [
        ("", "ends"),
        ("Node", "ends"),
        ("Node ==", "ends"),
        ("Node = n1", "=="),
        ("Node ! n1", "=="),
        ("Node == n1 n2", "n2"),
        ("Node == n1 and", "ends"),
        ("and Node == n1", "is expected"),
        ("(Node == n1", ")"),
        ("Node == n1)", ")"),
        ("Node == \"n1", "quote"),
        (r#"Node == "\x""#, "backslash"),
        ("Node is full", "is empty"),
        ("Node like n1", "like"),
        ("Node == größe", "quotes"),
        ("Node[x] == y", "brackets"),
        ("[\"x\"] == y", "bracket"),
        ("Node[\"x\"] == y", "no keys"),
        ("\"Node\" == n1", "selector"),
        ("ServicePort == http", "whole number"),
        ("ServicePort contains 8", "ServicePort"),
        ("ServiceTags == v1", "ServiceTags"),
        ("ServiceTags matches v1", "ServiceTags"),
        ("ServiceName matches `(`", "pattern"),
        ("ServiceName matches `(a{1000}){1000}`", "pattern"),
        ("ServiceMeta. == x", "ServiceMeta."),
    ] {
        let error = refused(expression);
        assert!(error.starts_with("filter: ") && error.contains(word), "{expression}: {error}");
    }
}

#[test]
fn a_selector_of_another_path_is_refused_with_those_of_this_one() {
    for expression in ["Service.Tags contains v1", "Tags is empty", "servicename == web", "x in Node.Meta"] {
        let error = refused(expression);
        assert!(error.contains("ServiceName, ServicePort"), "{error}");
    }
}

#[test]
fn length_and_depth_are_bounded() {
    let nested = |depth| format!("{}Node == n1{}", "(".repeat(depth), ")".repeat(depth));
    assert!(accepts(&nested(32)));
    assert!(refused(&nested(33)).contains("32"));
    assert!(refused(&format!("{}Node == n1", "not ".repeat(33))).contains("32"));
    let flat = vec!["Node == n1"; 200].join(" and ");
    assert!(accepts(&flat));
    assert!(refused(&"(".repeat(EXPRESSION_BYTES_MAX + 1)).contains("4096"));
    assert!(refused(&"(".repeat(EXPRESSION_BYTES_MAX)).contains("32"));
}
