//! A round of rs-consul against a node (its port on this host) and another node (its address): registers a
//! service, changes its check, writes and deletes keys, and waits for each change at the other node.

use std::time::Duration;

use rs_consul::{Config, Consul, types::*};

/// Longest wait of a blocking query. A query that ends with it has missed a change.
const WAIT: Duration = Duration::from_secs(20);

fn client(host: &str) -> Consul {
    Consul::new(Config { address: format!("http://{host}:7500"), ..Config::default() })
}

/// A service of a node that runs no agent, with a check of this status.
fn entity(status: &str) -> RegisterEntityPayload {
    let check = RegisterEntityCheck::builder()
        .Name("up".into())
        .CheckID("db-1-up".into())
        .ServiceID("db-1".into())
        .Status(status.into())
        .build();
    let service = RegisterEntityService::builder()
        .ID("db-1".into())
        .Service("db".into())
        .Tags(vec!["primary".into()])
        .Port(5432)
        .build();
    RegisterEntityPayload::builder()
        .Node("legacy".into())
        .Address("10.77.9.9".into())
        .Service(service)
        .Checks(vec![check])
        .build()
}

/// The ids of the passing instances, once they have changed since `index`; and the index.
async fn passing(of: &Consul, index: Option<u64>) -> (Vec<String>, u64) {
    let options = QueryOptions { index, wait: Some(WAIT), timeout: Some(WAIT * 2), ..Default::default() };
    let request = GetServiceNodesRequest { service: "db", passing: true, ..Default::default() };
    let found = of.get_service_nodes(request, Some(options)).await.unwrap();
    (found.response.into_iter().map(|one| one.service.id).collect(), found.index)
}

/// The passing instances become these.
async fn become_passing(of: &Consul, mut index: u64, expected: &[&str]) -> u64 {
    loop {
        let (ids, next) = passing(of, Some(index)).await;
        if ids == expected {
            return next;
        }
        assert!(next > index, "never came about: {expected:?}, but {ids:?}");
        index = next;
    }
}

async fn registers(here: &Consul, other: &Consul) {
    let (ids, index) = passing(other, None).await;
    assert!(ids.is_empty(), "{ids:?}");
    here.register_entity(&entity("passing")).await.unwrap();
    let index = become_passing(other, index, &["db-1"]).await;
    let names = other.get_all_registered_service_names(None).await.unwrap();
    assert!(names.response.contains(&"db".to_owned()), "{:?}", names.response);
    let addresses = other.get_service_addresses_and_ports("db", None).await.unwrap();
    assert_eq!(addresses, [("10.77.9.9".to_owned(), 5432)]);
    let nodes = other.get_nodes(GetNodesRequest::default(), None).await.unwrap();
    assert_eq!(nodes.response.len(), 2);

    here.register_entity(&entity("critical")).await.unwrap();
    let index = become_passing(other, index, &[]).await;
    here.register_entity(&entity("passing")).await.unwrap();
    let index = become_passing(other, index, &["db-1"]).await;
    let removal =
        DeregisterEntityPayload::builder().Node("legacy".into()).ServiceID("db-1".into()).build();
    here.deregister_entity(&removal).await.unwrap();
    become_passing(other, index, &[]).await;
    let removed = here.get_all_registered_service_names(None).await.unwrap();
    assert!(!removed.response.contains(&"db".to_owned()), "{:?}", removed.response);
}

async fn keeps_keys(here: &Consul, other: &Consul) {
    for (key, value) in [("web/a", "1"), ("web/b", "2")] {
        let request = CreateOrUpdateKeyRequest::builder().key(key).build();
        assert!(here.create_or_update_key(request, value.into()).await.unwrap().0);
    }
    let read = ReadKeyRequest::builder().key("web/").recurse(true).build();
    let found = other.read_key(read.clone()).await.unwrap();
    let values: Vec<_> = found.response.into_iter().map(|pair| (pair.key, pair.value.unwrap())).collect();
    assert_eq!(values, [("web/a".into(), "1".into()), ("web/b".into(), "2".into())]);
    let index = found.index;
    let waiting = ReadKeyRequest { index: Some(index), wait: WAIT, ..read };
    let write = async {
        tokio::task::yield_now().await;
        let request = DeleteKeyRequest::builder().key("web/a").build();
        assert!(here.delete_key(request).await.unwrap());
    };
    let (changed, ()) = tokio::join!(other.read_key(waiting), write);
    let changed = changed.unwrap();
    assert!(changed.index > index);
    assert_eq!(changed.response.into_iter().map(|pair| pair.key).collect::<Vec<_>>(), ["web/b"]);
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let other = std::env::args().nth(1).expect("the address of another node");
    let (here, other) = (client("127.0.0.1"), client(&other));
    registers(&here, &other).await;
    keeps_keys(&here, &other).await;
}
