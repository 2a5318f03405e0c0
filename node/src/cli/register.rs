//! `node register` and `node deregister`: registers a program, for good or for as long as the command runs,
//! and ends a registration.

mod check;

use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use clap::Args;
use http::Method;
use serde_json::{Map, Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    client::Client,
    failure::Failure,
    hold::{self, Holder},
    output::{Output, Tone},
    responses::Registered,
    sse::Event,
};
use crate::escape::{escaped, percent_encoded};

/// The largest registration file, in bytes: the limit of a node.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The properties of an instance besides its address.
#[derive(Args, Clone, Debug, Default, PartialEq)]
pub(super) struct Description {
    /// Id of the instance; registering it again replaces it [default: from name, address and port]
    #[arg(long)]
    pub(super) id: Option<String>,
    /// Tag (repeatable, or separated by commas)
    #[arg(long, value_delimiter = ',')]
    pub(super) tag: Vec<String>,
    /// Metadata (repeatable)
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_pair)]
    pub(super) meta: Vec<(String, String)>,
    /// Zone [default: that of the node]
    #[arg(long)]
    pub(super) zone: Option<String>,
    /// Weight in load balancing, 0 to 65535 [default: 1]
    #[arg(long)]
    pub(super) weight: Option<u16>,
    /// Required service (repeatable, or separated by commas)
    #[arg(long, value_name = "SERVICE", value_delimiter = ',')]
    pub(super) requires: Vec<String>,
    /// Health check (repeatable): KIND[=TARGET][,OPTION=VALUE]…, such as http=/health,interval=5s or tcp or
    /// process=:5432 (the process that listens there); kinds are http, tcp, udp, h2ping, grpc, ttl, alias,
    /// watch, process
    #[arg(long, value_name = "CHECK")]
    pub(super) check: Vec<String>,
}

/// `node register`.
#[derive(Args, Clone, Debug)]
pub(super) struct RegisterOptions {
    /// Name of the service
    #[arg(required_unless_present = "file")]
    name: Option<String>,
    /// Address: a host name or an IP address [default: this machine]
    #[arg(long, value_name = "HOST")]
    address: Option<String>,
    /// Port
    #[arg(long)]
    port: Option<u16>,
    /// Origin, http://host:port, in place of --address and --port
    #[arg(long, conflicts_with_all = ["address", "port"])]
    url: Option<String>,
    /// Named port, in place of --port (repeatable); one may be the default: http=8080,default
    #[arg(long, value_name = "NAME=PORT", value_parser = parse_named_port, conflicts_with_all = ["port", "url"])]
    named_port: Vec<NamedPort>,
    #[command(flatten)]
    description: Description,
    /// URL to which the node POSTs changes of the required services
    #[arg(long, value_name = "URL")]
    updates: Option<String>,
    /// File with the registration as JSON, sent unchanged; - is standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["name", "address", "port", "url",
        "named_port", "id", "tag", "meta", "zone", "weight", "requires", "check", "updates"])]
    file: Option<PathBuf>,
    /// Hold the registration: the instance exists until this command ends
    #[arg(long)]
    hold: bool,
    /// With --hold: time for which the instance stays, critical, after the connection is lost [default: 0s]
    #[arg(long, value_name = "DURATION", requires = "hold")]
    grace: Option<String>,
}

/// A named port.
#[derive(Clone, PartialEq, Eq, Debug)]
struct NamedPort {
    name: String,
    port: u16,
    is_default: bool,
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("give KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn parse_named_port(text: &str) -> Result<NamedPort, String> {
    let (text, is_default) = match text.strip_suffix(",default") {
        Some(text) => (text, true),
        None => (text, false),
    };
    let (name, port) = text.split_once('=').ok_or("give NAME=PORT or NAME=PORT,default")?;
    let port = port.parse().map_err(|_| format!("{port:?} is not a port; give a number from 1 to 65535"))?;
    Ok(NamedPort { name: name.to_owned(), port, is_default })
}

impl Description {
    /// Adds the properties to a registration.
    pub(super) fn add_to(&self, registration: &mut Map<String, Value>) -> Result<(), Failure> {
        let mut add = |key: &str, value: Value| _ = registration.insert(key.to_owned(), value);
        if let Some(id) = &self.id {
            add("id", json!(id));
        }
        if !self.tag.is_empty() {
            add("tags", json!(self.tag));
        }
        if !self.meta.is_empty() {
            add("meta", self.meta.iter().map(|(key, value)| (key.clone(), json!(value))).collect());
        }
        if let Some(zone) = &self.zone {
            add("zone", json!(zone));
        }
        if let Some(weight) = self.weight {
            add("weight", json!(weight));
        }
        if !self.requires.is_empty() {
            add("requires", json!(self.requires));
        }
        let checks = self.check.iter().map(|text| check::parse(text));
        let checks: Vec<Value> = checks.collect::<Result<_, _>>().map_err(Failure::Usage)?;
        if !checks.is_empty() {
            add("checks", checks.into());
        }
        Ok(())
    }
}

impl RegisterOptions {
    /// Returns the registration as JSON.
    fn body(&self) -> Result<Bytes, Failure> {
        if let Some(path) = &self.file {
            return read_file(path);
        }
        let mut registration = Map::new();
        let mut add = |key: &str, value: Value| _ = registration.insert(key.to_owned(), value);
        add("name", json!(self.name));
        if let Some(address) = &self.address {
            add("address", json!(address));
        }
        if let Some(port) = self.port {
            add("port", json!(port));
        }
        if let Some(url) = &self.url {
            add("url", json!(url));
        }
        if let Some(updates) = &self.updates {
            add("updates", json!(updates));
        }
        if !self.named_port.is_empty() {
            let port =
                |port: &NamedPort| json!({"name": port.name, "port": port.port, "default": port.is_default});
            add("ports", self.named_port.iter().map(port).collect());
        }
        self.description.add_to(&mut registration)?;
        Ok(Value::Object(registration).to_string().into())
    }
}

fn read_file(path: &Path) -> Result<Bytes, Failure> {
    let mut content = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(FILE_BYTES_MAX + 1).read_to_end(&mut content)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut content))
    };
    read.map_err(|error| Failure::Failed(anyhow::anyhow!("cannot read {}: {error}", path.display())))?;
    if content.len() as u64 > FILE_BYTES_MAX {
        let problem = format!(
            "{} is larger than 1 MiB, the limit of a registration; is it the right file?",
            path.display()
        );
        return Err(Failure::Usage(problem));
    }
    Ok(content.into())
}

/// Registers an instance, and prints its id.
pub(super) async fn register(
    client: &Client,
    output: Output,
    options: &RegisterOptions,
) -> Result<(), Failure> {
    let body = options.body()?;
    if options.hold {
        return register_and_hold(client, output, options, body).await;
    }
    let answer = client.write(Method::POST, "/services", body).await?.expect_success()?;
    if output.json {
        return output.json(&answer.body);
    }
    match answer.json::<Registered>() {
        Ok(registered) if !registered.id.is_empty() => {
            output.print(&format!("{}\n", escaped(&registered.id)))
        }
        // In dialect 2 the answer has only the required services.
        _ => output.json(&answer.body),
    }
}

/// Registers an instance until this command ends.
async fn register_and_hold(
    client: &Client,
    output: Output,
    options: &RegisterOptions,
    body: Bytes,
) -> Result<(), Failure> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let holder = Holder::new(client.clone(), body, options.grace.as_deref());
    let held = holder.open().await?;
    let id = held.registered.id.clone();
    if output.json {
        print_update(output, &held.first)?;
    } else {
        output.print(&format!("{}\n", escaped(&id)))?;
    }
    tokio::select! {
        ended = holder.keep(held, |event| print_update(output, event)) => return Err(ended),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    hold::deregister(client, &id).await;
    Ok(())
}

/// Prints a change of the required services.
fn print_update(output: Output, event: &Event) -> Result<(), Failure> {
    if output.json {
        let data: Value = serde_json::from_str(&event.data).unwrap_or(Value::Null);
        let line = json!({ "event": event.name, "data": data }).to_string();
        return output.print(&format!("{}\n", escaped(&line)));
    }
    let update: Registered = serde_json::from_str(&event.data).unwrap_or_default();
    for (service, instances) in update.requires {
        let urls = instances.iter().map(|instance| instance.url.as_str()).collect::<Vec<_>>().join(" ");
        let urls = if urls.is_empty() { "none" } else { &urls };
        output.line(Tone::Plain, &format!("requires {service}: {urls}"))?;
    }
    Ok(())
}

/// Removes an instance.
pub(super) async fn deregister(client: &Client, output: Output, id: &str) -> Result<(), Failure> {
    let path = format!("/services/{}", percent_encoded(id));
    let answer = client.write_at_holder(Method::DELETE, &path, Bytes::new()).await?.expect_success()?;
    match serde_json::from_slice::<Value>(&answer.body) {
        Ok(_) if output.json => output.json(&answer.body),
        _ if output.json => output.print(&format!("{}\n", json!({ "deregistered": id }))),
        _ => output.line(Tone::Good, &format!("{id} is deregistered")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct TestCommand {
        #[command(flatten)]
        options: RegisterOptions,
    }

    fn body(args: &[&str]) -> Result<Value, Failure> {
        let options = TestCommand::try_parse_from([&["register"], args].concat()).unwrap().options;
        Ok(serde_json::from_slice(&options.body()?).unwrap())
    }

    #[test]
    fn flags_become_the_json_of_a_registration() {
        assert_eq!(body(&["web", "--port", "80"]).unwrap(), json!({"name": "web", "port": 80}));
        let args = "web --id w1 --address ::1 --named-port http=8080,default --named-port admin=8081 --tag a,b --tag c \
                    --meta k=v=w --zone z --weight 0 --requires db,cache --updates http://127.0.0.1:1/u --check tcp --check http=/health";
        let expected = json!({
            "name": "web", "id": "w1", "address": "::1", "zone": "z", "weight": 0, "updates": "http://127.0.0.1:1/u",
            "ports": [{"name": "http", "port": 8080, "default": true}, {"name": "admin", "port": 8081, "default": false}],
            "tags": ["a", "b", "c"], "meta": {"k": "v=w"}, "requires": ["db", "cache"],
            "checks": [{"tcp": true}, {"http": "/health"}],
        });
        assert_eq!(body(&args.split_whitespace().collect::<Vec<_>>()).unwrap(), expected);
        let by_url = body(&["web", "--url", "https://a.example"]).unwrap();
        assert_eq!(by_url, json!({"name": "web", "url": "https://a.example"}));
        assert!(matches!(body(&["web", "--check", "ftp"]), Err(Failure::Usage(_))));
    }

    #[test]
    fn a_file_is_sent_as_it_is_and_stands_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web.json");
        std::fs::write(&path, r#"{"ServiceName":"web"}"#).unwrap();
        let file = path.to_str().unwrap();
        assert_eq!(body(&["--file", file]).unwrap(), json!({"ServiceName": "web"}));
        for wrong in [&["web", "--file", file][..], &["--port", "1", "--file", file], &[], &["--port", "1"]] {
            assert!(TestCommand::try_parse_from([&["register"], wrong].concat()).is_err(), "{wrong:?}");
        }
        for wrong in
            [&["web", "--grace", "5s"][..], &["web", "--named-port", "http"], &["web", "--meta", "x"]]
        {
            assert!(TestCommand::try_parse_from([&["register"], wrong].concat()).is_err(), "{wrong:?}");
        }
    }
}
