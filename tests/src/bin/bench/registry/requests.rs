//! Compares registrations and lookups with etcd's puts and ranges of the same bytes. The systems run in turn,
//! each from an empty state.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{Options, etcd};
use crate::{
    load::{Answered, Connection, Load, alone},
    machine::{self, first_line},
    protocol::{WireProtocol, get, post},
    server::{Plan, Server},
    usage::Reading,
    wrk::{LoadReport, Wrk},
};

/// Numbers of concurrent connections.
pub(crate) const CLIENTS: [usize; 2] = [1, 64];
/// Time of load before measuring.
const WARM_UP: Duration = Duration::from_secs(1);
/// Longest wait for an idle machine, before each measurement.
const QUIET_MAX: Duration = Duration::from_secs(5);
/// Instances that are registered, and then replaced with other values. The number is below a node's limit.
const RING: usize = 4096;
/// Number of instances of the service that lookups read.
pub(crate) const LOOKED_UP: usize = 3;
const SERVICE: &str = "web";
const CONTENT_TYPE: &str = "application/json";

/// System and kind of request that are measured.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Kind {
    EtcdPut,
    Register,
    EtcdRange,
    EtcdSerializable,
    Lookup,
    /// The same lookup by Consul's path.
    ConsulLookup,
    Livez,
}

impl Kind {
    /// Lookups of one service, by both interfaces of a node and by etcd.
    pub(crate) const CONSUL: [Self; 4] =
        [Self::EtcdRange, Self::EtcdSerializable, Self::Lookup, Self::ConsulLookup];

    pub(crate) const ALL: [Self; 6] =
        [Self::EtcdPut, Self::Register, Self::EtcdRange, Self::EtcdSerializable, Self::Lookup, Self::Livez];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::EtcdPut => "etcd, Put",
            Self::Register => "hearsay, POST /services",
            Self::EtcdRange => "etcd, Range, linearizable",
            Self::EtcdSerializable => "etcd, Range, serializable",
            Self::Lookup => "hearsay, GET /services/web",
            Self::ConsulLookup => "hearsay, GET /v1/health/service/web?passing",
            Self::Livez => "hearsay, GET /livez",
        }
    }

    pub(crate) fn writes(self) -> bool {
        matches!(self, Self::EtcdPut | Self::Register)
    }

    /// Returns the kind to which this one's ratio refers.
    pub(crate) fn peer(self) -> Self {
        if self.writes() { Self::EtcdPut } else { Self::EtcdSerializable }
    }

    pub(crate) fn is_etcd(self) -> bool {
        matches!(self, Self::EtcdPut | Self::EtcdRange | Self::EtcdSerializable)
    }

    fn protocol(self) -> WireProtocol {
        if self.is_etcd() { WireProtocol::Grpc } else { WireProtocol::Http }
    }

    fn start(self, folder: &Path) -> Result<Server> {
        if self.is_etcd() { etcd::start(folder) } else { Plan::new(folder, 0, "", &[]).start() }
    }

    /// Builds a request that writes an instance.
    fn write(self, number: usize, version: usize) -> Vec<u8> {
        let body = body(number, version);
        if self.is_etcd() {
            etcd::put(&etcd::key(SERVICE, &id(number)), &body)
        } else {
            post("/services", CONTENT_TYPE, &body)
        }
    }

    /// Returns the requests that one connection sends in turn.
    fn requests(self, connection: usize, connections: usize) -> Vec<Vec<u8>> {
        let own = || (connection..RING).step_by(connections);
        match self {
            Self::EtcdPut | Self::Register => {
                (0..2).flat_map(|version| own().map(move |number| self.write(number, version))).collect()
            }
            Self::EtcdRange | Self::EtcdSerializable => {
                vec![etcd::range(SERVICE, self == Self::EtcdSerializable)]
            }
            Self::Lookup => vec![get(&format!("/services/{SERVICE}"))],
            Self::ConsulLookup => vec![get(&format!("/v1/health/service/{SERVICE}?passing"))],
            Self::Livez => vec![get("/livez")],
        }
    }
}

fn id(number: usize) -> String {
    format!("{SERVICE}-{number}")
}

/// Returns a registration as programs send it. etcd stores the same bytes.
pub(super) fn body(number: usize, version: usize) -> String {
    json!({
        "name": SERVICE, "id": id(number), "address": "10.77.0.5", "port": 8000 + number, "tags": ["v1", "blue"],
        "meta": { "version": version.to_string() },
    })
    .to_string()
}

/// Figures of one kind with one number of connections, over all rounds.
#[derive(Clone, Default, Debug)]
pub(crate) struct Cell {
    pub(crate) answered: Answered,
    /// Rate of each round.
    pub(crate) rates: Vec<f64>,
    pub(crate) cpu_seconds: f64,
}

impl Cell {
    /// Returns requests a second, over all rounds.
    pub(crate) fn rate(&self) -> f64 {
        self.answered.per_second()
    }
}

/// Figures of all kinds, and of `wrk`.
#[derive(Default)]
pub(crate) struct Figures {
    pub(crate) cells: BTreeMap<(Kind, usize), Cell>,
    /// Lookups by `wrk` with two threads: the report of each round.
    pub(crate) wrk: Vec<LoadReport>,
}

impl Figures {
    pub(crate) fn json(&self) -> Value {
        let cell = |((kind, clients), cell): (&(Kind, usize), &Cell)| {
            json!({
                "what": kind.name(), "clients": clients, "perSecond": cell.rate(), "rates": cell.rates,
                "p50": cell.answered.times().percentile(50).to_string(), "p99": cell.answered.times().percentile(99).to_string(),
                "bad": cell.answered.bad, "cpuSeconds": cell.cpu_seconds,
            })
        };
        let wrk = |told: &LoadReport| json!({ "perSecond": told.per_second, "p99Us": told.p99_us, "errors": told.errors });
        json!({
            "cells": self.cells.iter().map(cell).collect::<Vec<_>>(),
            "wrk": self.wrk.iter().map(wrk).collect::<Vec<_>>(),
        })
    }
}

/// Measures all kinds, in turn, as often as requested.
///
/// # Errors
/// A server did not start, or refused.
pub(super) fn measure(options: &Options, folder: &Path, has_etcd: bool) -> Result<Figures> {
    let mut figures = Figures::default();
    let has_wrk = first_line("wrk", &["-v"]).is_some();
    for round in 0..options.rounds {
        eprintln!("round {}", round + 1);
        let kinds = Kind::ALL.into_iter().filter(|kind| has_etcd || !kind.is_etcd());
        measure_round(kinds, options.time, folder, &mut figures)?;
        if has_wrk {
            let place = folder.join("servers");
            let server = started(Kind::Lookup, &place)?;
            machine::wait_until_idle(QUIET_MAX);
            let url = format!("http://{}/services/{SERVICE}", server.address);
            let wrk = Wrk { url: &url, threads: 2, connections: 64, time: options.time, processor: None };
            let told = wrk.run()?;
            eprintln!("round {}: wrk: {:.0}/s, p99 {:.0} µs", round + 1, told.per_second, told.p99_us);
            figures.wrk.push(told);
            drop(server);
            fs::remove_dir_all(&place).with_context(|| place.display().to_string())?;
        }
    }
    Ok(figures)
}

/// Measures each of these kinds once, with each number of connections.
///
/// # Errors
/// A server did not start, or refused.
pub(crate) fn measure_round(
    kinds: impl Iterator<Item = Kind>,
    time: Duration,
    folder: &Path,
    figures: &mut Figures,
) -> Result<()> {
    for kind in kinds {
        for clients in CLIENTS {
            let place = folder.join("servers");
            let cell = figures.cells.entry((kind, clients)).or_default();
            ask(kind, clients, time, &place, cell)
                .with_context(|| format!("{}, {clients} clients", kind.name()))?;
            fs::remove_dir_all(&place).with_context(|| place.display().to_string())?;
            let rate = cell.rates.last().copied().unwrap_or_default();
            eprintln!("{}, {clients} clients: {rate:.0}/s", kind.name());
        }
    }
    Ok(())
}

/// Starts a server that has the instances for lookups.
fn started(kind: Kind, place: &Path) -> Result<Server> {
    let server = kind.start(place)?;
    if !kind.writes() {
        alone(async {
            let mut connection = Connection::open(server.address, kind.protocol(), 0).await?;
            for number in 0..LOOKED_UP {
                ensure!(connection.ask(&kind.write(number, 0)).await?, "an instance was refused");
            }
            Ok(())
        })?;
    }
    Ok(server)
}

/// Runs one round of one kind, with a new server.
fn ask(kind: Kind, clients: usize, time: Duration, place: &Path, cell: &mut Cell) -> Result<()> {
    let server = started(kind, place)?;
    let load = Load {
        to: server.address,
        protocol: kind.protocol(),
        requests: (0..clients).map(|connection| kind.requests(connection, clients)).collect(),
        warm_up: WARM_UP,
        time,
    };
    machine::wait_until_idle(QUIET_MAX);
    let (answered, first, last) = load.run(|| Reading::take([server.process.pid()].into_iter()))?;
    ensure!(!answered.times_us.is_empty(), "nothing was answered");
    cell.rates.push(answered.per_second());
    cell.answered.and(answered);
    cell.cpu_seconds += last.cpu_seconds_since(&first);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_share_the_ring_and_change_what_they_register() {
        let of = |connection| Kind::Register.requests(connection, 64);
        let all: std::collections::BTreeSet<Vec<u8>> = (0..64).flat_map(of).collect();
        assert_eq!(all.len(), RING * 2, "each instance twice, with something else in it");
    }
}
