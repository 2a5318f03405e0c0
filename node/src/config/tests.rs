//! Tests of [`Config`]: precedence, defaults, bounds and warnings.

use std::{fs, path::Path};

use clap::{Args as _, FromArgMatches as _};
use hearsay_protocol::Identity;

use super::*;

const ROLES: [&str; 2] = ["grading", "log"];
const EXAMPLE: &str = include_str!("../../../docs/node.example.toml");

fn flags(args: &[&str]) -> Options {
    let command = Options::augment_args(clap::Command::new("node").no_binary_name(true));
    Options::from_arg_matches(&command.try_get_matches_from(args).unwrap()).unwrap()
}

/// Loads with these flags, this file's content (if any) and these variables.
fn load(args: &[&str], file: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.toml");
    fs::write(&path, file).unwrap();
    let environment = [("HOME", "/home/me")].iter().chain(variables).copied().collect();
    Config::load(flags(args), Some(path), &environment, &ROLES)
}

fn error(args: &[&str], file: &str, variables: &[(&str, &str)]) -> String {
    load(args, file, variables).unwrap_err().to_string()
}

#[test]
fn a_flag_outranks_the_environment_which_outranks_the_file_which_outranks_the_default() {
    let file = "zone = 'file'\njoin = ['file']\ndemo = true\nhttp = 1\n";
    let env = [
        ("HEARSAY_ZONE", "env"),
        ("HEARSAY_JOIN", "env,env2"),
        ("HEARSAY_DEMO", "no"),
        ("HEARSAY_HTTP", "2"),
    ];
    let args = ["--zone", "flag", "--join", "flag", "--demo", "--http=3"];
    // Zone, nodes to join, demo, HTTP port.
    type Expected = (Option<&'static str>, &'static str, bool, Option<u16>);
    let table: [(&[&str], &str, &[_], Expected); 4] = [
        (&args, file, &env, (Some("flag"), "flag:7600", true, Some(3))),
        (&[], file, &env, (Some("env"), "env:7600 env2:7600", false, Some(2))),
        (&[], file, &[], (Some("file"), "file:7600", true, Some(1))),
        (&[], "", &[], (None, "", false, None)),
    ];
    for (args, file, env, expected) in table {
        let config = load(args, file, env).unwrap();
        let join = config.join.iter().map(Join::to_string).collect::<Vec<_>>().join(" ");
        let http = match config.http {
            Listen::Exactly(address) => Some(address.port()),
            Listen::Ladder(_) => None,
        };
        assert_eq!((config.zone.as_deref(), join.as_str(), config.demo, http), expected);
    }
}

#[test]
fn the_example_file_is_the_defaults_and_shows_every_option() {
    let environment: Environment = [("HOME", "/home/me")].into_iter().collect();
    let defaults = Config::load(Options::default(), None, &environment, &ROLES).unwrap();
    assert_eq!(load(&[], EXAMPLE, &[]).unwrap(), defaults);
    // Options without a default are commented out in the file. Their examples must be valid, too.
    let (mut shown, mut uncommented) = (Vec::new(), String::new());
    for line in EXAMPLE.lines() {
        let line =
            line.strip_prefix('#').filter(|l| l.contains(" = ") && !l.starts_with(' ')).unwrap_or(line);
        shown
            .extend(line.split_once(" = ").filter(|_| !line.starts_with('#')).map(|(key, _)| key.to_owned()));
        uncommented += &format!("{line}\n");
    }
    assert_eq!(shown, Options::names());
    toml::from_str::<Options>(&uncommented).unwrap();
}

#[test]
fn an_unknown_key_is_an_error_that_names_it_and_what_exists() {
    let error = error(&[], "zone = 'a'\nclustr = 'x'\n", &[]);
    assert!(error.contains("clustr") && error.contains("`cluster`") && error.contains("line 2"), "{error}");
}

#[test]
fn an_unknown_variable_is_a_warning_unless_kubernetes_set_it() {
    let variables =
        [("HEARSAY_CLUSTR", "x"), ("HEARSAY_SERVICE_HOST", "10.0.0.1"), ("HEARSAY_PORT", "tcp://x")];
    let warnings = load(&[], "", &variables).unwrap().warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("HEARSAY_CLUSTR"));
}

#[test]
fn a_boolean_variable_has_many_forms_and_an_empty_one_is_not_set() {
    for (value, expected) in [("1", true), ("true", true), ("yes", true), ("0", false), ("no", false)] {
        assert_eq!(load(&[], "", &[("HEARSAY_DEMO", value)]).unwrap().demo, expected, "{value}");
    }
    assert!(load(&[], "demo = true", &[("HEARSAY_DEMO", "")]).unwrap().demo);
    let error = error(&[], "", &[("HEARSAY_DEMO", "maybe")]);
    assert!(error.contains("HEARSAY_DEMO") && error.contains("maybe"), "{error}");
}

#[test]
fn default_ports_are_ladders_and_dns_stays_on_loopback() {
    let config = load(&[], "", &[]).unwrap();
    for (listen, expected) in [
        (config.http, "[::]:7500"),
        (config.swarm, "[::]:7600"),
        (config.gateway, "[::]:8080"),
        (config.dns, "127.0.0.1:7553"),
        (config.grpc, "[::]:7700"),
    ] {
        assert_eq!(listen, Listen::Ladder(expected.parse().unwrap()));
    }
    let dns = load(&["--dns", ":53"], "", &[]).unwrap().dns;
    assert_eq!(dns, Listen::Exactly("127.0.0.1:53".parse().unwrap()));
}

#[test]
fn mapped_ports_are_advertised_and_one_without_the_other_is_warned_of() {
    let both =
        load(&["--advertise", "db.example:17600", "--advertise-http", "db.example:17500"], "", &[]).unwrap();
    assert_eq!(both.advertise[0].to_string(), "db.example:17600");
    assert_eq!(both.advertise_http.unwrap().to_string(), "db.example:17500");
    assert_eq!(both.warnings, [""; 0]);
    let file = "advertise = ['[2001:db8::1]:17600', 'lo']\n";
    let swarm_alone = load(&[], file, &[("HEARSAY_ADVERTISE_HTTP", "")]).unwrap();
    let advertised: Vec<_> = swarm_alone.advertise.iter().map(ToString::to_string).collect();
    assert_eq!(advertised, ["[2001:db8::1]:17600", "lo"]);
    assert!(matches!(swarm_alone.advertise[1], Advertise::Interface(..)));
    assert!(swarm_alone.warnings[0].contains("--advertise-http"), "{:?}", swarm_alone.warnings);
    let own_port =
        load(&["--advertise", "db.example:7600"], "", &[("HEARSAY_ADVERTISE_HTTP", "db.example:1")]);
    assert_eq!(own_port.unwrap().warnings, [""; 0]);
}

#[test]
fn roles_repeat_or_take_commas_and_an_unknown_one_lists_those_there_are() {
    let roles = load(&["--role", "log,grading", "--role", "log"], "", &[]).unwrap().roles;
    assert_eq!(roles, ["log", "grading"]);
    let error = error(&["--role", "gradin"], "", &[]);
    assert!(error.contains("gradin") && error.contains("grading, log"), "{error}");
}

#[test]
fn an_invalid_value_is_reported_with_its_option_and_what_is_allowed() {
    let long = "x".repeat(129);
    let table: [(&[&str], &[&str]); 15] = [
        (&["--name", &long], &["name:", "128"]),
        (&["--cluster", "a/b"], &["cluster:", "'/'"]),
        (&["--zone", ""], &["zone:", "1 to 128"]),
        (&["--http", "x"], &["http:", "IP:PORT"]),
        (&["--join", "a b"], &["join:", "host:port"]),
        (&["--advertise", "a/b"], &["advertise:", "host name", "network interface"]),
        (&["--advertise", "db:x"], &["advertise:", "1 to 65535"]),
        (&["--advertise-http", "db"], &["advertise-http:", "db:7500"]),
        (&["--tag", "a\u{7}"], &["tag:", "control"]),
        (&["--gateway-routes", "web"], &["gateway-routes:", "SERVICE=HOST/PREFIX"]),
        (&["--gateway-allow", "10.0.0.0/33"], &["gateway-allow:", "10.0.0.0/33", "33 bits"]),
        (&["--log-max-age", "30"], &["log-max-age:", "30d"]),
        (&["--log-max-bytes", "1k"], &["log-max-bytes:", "1GiB"]),
        (&["--log-format", "xml"], &["log-format:", "text and json"]),
        (&["--key-file", "/nowhere"], &["/nowhere"]),
    ];
    for (args, parts) in table {
        let error = error(args, "", &[]);
        assert!(parts.iter().all(|part| error.contains(part)), "{args:?}: {error}");
    }
    let error = error(&[], "http = 70000", &[]);
    assert!(error.contains("70000"), "{error}");
}

#[test]
fn state_is_in_the_xdg_directory_and_ephemeral_excludes_a_directory() {
    let at = |variables: &[(&str, &str)]| load(&[], "", variables).unwrap().data_dir;
    assert_eq!(at(&[]), DataDir::Slots("/home/me/.local/state/hearsay".into()));
    assert_eq!(at(&[("XDG_STATE_HOME", "/state")]), DataDir::Slots("/state/hearsay".into()));
    assert_eq!(at(&[("XDG_STATE_HOME", "relative")]), DataDir::Slots("/home/me/.local/state/hearsay".into()));
    assert_eq!(load(&["--ephemeral"], "", &[]).unwrap().data_dir, DataDir::Ephemeral);
    let both = load(&["--ephemeral", "--data-dir=/x"], "", &[]).unwrap_err();
    assert!(matches!(both, ConfigError::EphemeralDataDir));
    let both = load(&[], "data-dir = '/x'\nephemeral = true", &[]).unwrap_err();
    assert!(matches!(both, ConfigError::EphemeralDataDir));
    // The source of higher precedence decides.
    let outranked = load(&["--ephemeral"], "", &[("HEARSAY_DATA_DIR", "/x")]).unwrap();
    assert_eq!(outranked.data_dir, DataDir::Ephemeral);
    let outranked = load(&["--data-dir=/x"], "ephemeral = true", &[]).unwrap();
    assert_eq!(outranked.data_dir, DataDir::Exactly("/x".into()));
    let freed = load(&["--ephemeral=false"], "data-dir = '/x'\nephemeral = true", &[]).unwrap();
    assert_eq!(freed.data_dir, DataDir::Exactly("/x".into()));
    let homeless = Config::load(Options::default(), None, &Environment::default(), &ROLES);
    assert!(matches!(homeless, Err(ConfigError::Homeless)));
}

#[test]
fn an_option_without_effect_is_accepted_with_a_warning() {
    for given in [
        ["--gateway", "9000"],
        ["--gateway-allow", "10.0.0.0/8,fd00::/8"],
        ["--gateway-routes", "web=www.example.com/,shop=/shop"],
    ] {
        let without_role = load(&given, "", &[]).unwrap().warnings;
        assert!(without_role.len() == 1 && without_role[0].contains("--role gateway"), "{without_role:?}");
    }
}

#[test]
fn the_retention_of_the_log_can_be_set_in_each_source() {
    let day = |days: u64| Some(std::time::Duration::from_secs(days * 24 * 3600));
    let kept = load(&["--log-max-age=7d", "--role=log"], "log-max-bytes = '64MiB'", &[]).unwrap();
    assert_eq!(kept.log_retention, Retention { age: day(7), bytes: Some(64 << 20) });
    assert!(kept.warnings.is_empty(), "{:?}", kept.warnings);
    let kept = load(&["--role=log"], "", &[("HEARSAY_LOG_MAX_BYTES", "unlimited")]).unwrap();
    assert_eq!(kept.log_retention, Retention { age: day(30), bytes: None });
    let warnings = load(&["--log-max-age=7d"], "", &[]).unwrap().warnings;
    assert!(warnings.len() == 1 && warnings[0].contains("--role log"), "{warnings:?}");
}

#[test]
fn tags_are_a_list_as_the_others_are() {
    let config = load(&[], "", &[("HEARSAY_TAG", "a, b,")]).unwrap();
    assert_eq!(config.tags, ["a", "b"]);
}

#[test]
fn a_missing_file_is_named() {
    let environment = Environment::from_iter([("HEARSAY_CONFIG", "/nowhere/node.toml")]);
    let error = Config::load(Options::default(), None, &environment, &ROLES).unwrap_err();
    assert!(
        matches!(&error, ConfigError::File { path, .. } if path == Path::new("/nowhere/node.toml")),
        "{error}"
    );
}

#[test]
fn a_default_name_is_a_dns_label_that_no_other_node_has() {
    let id = Identity::from_seed(&[1; 32]).id();
    let short = id.short();
    for (host, expected) in [
        ("db1", format!("db1-{short}")),
        ("db1.example.com", format!("db1-{short}")),
        ("-My_Laptop!", format!("My-Laptop-{short}")),
        ("", format!("node-{short}")),
        ("ü", format!("node-{short}")),
    ] {
        assert_eq!(default_name(host, id), expected);
    }
    assert_eq!(default_name(&"x".repeat(100), id).len(), 63);
}

#[test]
fn the_key_is_what_systemd_passes_unless_another_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let credentials = [("CREDENTIALS_DIRECTORY", dir.path().to_str().unwrap())];
    assert_eq!(load(&[], "", &credentials).unwrap().cluster_key, None);
    let key = crate::admission::ClusterKey::random().unwrap();
    fs::write(dir.path().join("hearsay.cluster.key"), key.to_file().expose()).unwrap();
    assert_eq!(load(&[], "", &credentials).unwrap().cluster_key, Some(key));
    assert!(error(&["--key-file", "/elsewhere"], "", &credentials).contains("/elsewhere"));
    fs::write(dir.path().join("hearsay.cluster.key"), "no key").unwrap();
    assert!(error(&[], "", &credentials).contains("hearsay.cluster.key"));
}

#[test]
fn a_private_node_warns_of_dns_for_others_and_refuses_dns_that_answers_none() {
    let warns = |flags: &[&str]| {
        let config = load(flags, "", &[]).unwrap();
        config.warnings.iter().any(|warning| warning.contains("DNS at 0.0.0.0:7553 answers only"))
    };
    assert!(warns(&["--private", "--dns", "0.0.0.0"]));
    assert!(!warns(&["--private"]) && !warns(&["--dns", "0.0.0.0"]));
    let both = ["--private", "--loopback-needs-token"];
    assert!(load(&both, "", &[]).is_ok(), "without --dns, the node does not answer DNS");
    let error = load(&[&both[..], &["--dns", ":53"]].concat(), "", &[]).unwrap_err().to_string();
    assert!(error.starts_with("dns: ") && error.contains("API token"), "{error}");
}

#[test]
fn json_rpc_over_tcp_is_off_by_default_and_warned_of_if_others_have_no_proof() {
    assert_eq!(load(&[], "", &[]).unwrap().jsonrpc_tcp, None);
    let at = |text: &str| load(&[], "", &[("HEARSAY_JSONRPC_TCP", text)]).unwrap().jsonrpc_tcp;
    assert_eq!(at("127.0.0.1"), Some(Listen::Ladder("127.0.0.1:7800".parse().unwrap())));
    assert_eq!(at(":9000"), Some(Listen::Exactly("127.0.0.1:9000".parse().unwrap())));
    let warns = |flags: &[&str]| {
        let config = load(flags, "", &[]).unwrap();
        config.warnings.iter().any(|warning| warning.contains("JSON-RPC at 0.0.0.0:7800 carries no token"))
    };
    assert!(warns(&["--private", "--jsonrpc-tcp", "0.0.0.0"]));
    assert!(!warns(&["--private", "--jsonrpc-tcp", ":7800"]) && !warns(&["--jsonrpc-tcp", "0.0.0.0"]));
    let error = error(&["--private", "--loopback-needs-token", "--jsonrpc-tcp", ":7800"], "", &[]);
    assert!(error.starts_with("jsonrpc-tcp: ") && error.contains("API token"), "{error}");
}
