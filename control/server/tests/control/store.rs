//! The store's gRPC door.

use base64::{Engine, engine::general_purpose::STANDARD};
use coracle_objects::{Applied, ObjectKey, Refusal, Transaction, Write};
use coracle_proto::{
    MESSAGE_BYTES_MAX,
    join::{Role, join},
    store::{EventType, RangeRequest, TxnRequest, WatchRequest, store_client::StoreClient},
    tls,
};
use coracle_server::Control;
use coracle_store::{FIRST_LEVEL, Levels, Request, RequestId, decode_outcome, encode_transaction};
use kube::config::Kubeconfig;
use tonic::{Code, transport::Channel};

use crate::bench::{init, settled, three};

fn admin(control: &Control) -> StoreClient<Channel> {
    let kubeconfig = Kubeconfig::read_from(control.kubeconfig_path()).unwrap();
    let user = serde_json::to_value(&kubeconfig.auth_infos[0].auth_info).unwrap();
    let cluster = kubeconfig.clusters[0].cluster.clone().unwrap();
    let pem = |base64: &str| String::from_utf8(STANDARD.decode(base64).unwrap()).unwrap();
    let field = |name: &str| pem(user[name].as_str().unwrap());
    let ca = pem(&cluster.certificate_authority_data.unwrap());
    let config = tls::client_config(&ca, &field("client-certificate-data"), &field("client-key-data"));
    StoreClient::new(tls::channel(&control.address(), config.unwrap()))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
}

fn map(name: &str) -> Transaction {
    let key = ObjectKey::new("configmaps", "default", name);
    Transaction::create(key, format!(r#"{{"metadata":{{"name":"{name}"}}}}"#).into())
}

async fn put(
    client: &mut StoreClient<Channel>,
    sequence: u64,
    transaction: Transaction,
) -> Result<Applied, Refusal> {
    let request = Request { id: RequestId { client: 77, sequence }, transaction };
    let request = TxnRequest { transaction: encode_transaction(&request, FIRST_LEVEL) };
    decode_outcome(&client.txn(request).await.unwrap().into_inner().outcome, Levels::default()).unwrap()
}

fn maps() -> RangeRequest {
    RangeRequest { resource: "configmaps".into(), namespace: "default".into(), ..RangeRequest::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_member_writes_reads_and_watches() {
    let dir = tempfile::tempdir().unwrap();
    let controls = three(dir.path()).await;
    for control in &controls {
        settled(control).await;
    }
    let mut members: Vec<_> = controls.iter().map(admin).collect();
    let from_now = WatchRequest { resource: "configmaps".into(), namespace: "default".into(), after: None };
    let mut watch = members[2].watch(from_now).await.unwrap().into_inner();
    let start = watch.message().await.unwrap().unwrap().progress;

    let first = put(&mut members[0], 1, map("a")).await.unwrap();
    assert!(first.revision > start);
    assert_eq!(put(&mut members[1], 1, map("a")).await, Ok(first.clone()), "a retry has the first outcome");
    let refused = put(&mut members[1], 2, map("a")).await;
    assert!(matches!(refused, Err(Refusal::Precondition { .. })), "{refused:?}");
    for (sequence, name) in (3..).zip(["b", "c"]) {
        put(&mut members[1], sequence, map(name)).await.unwrap();
    }
    let key = ObjectKey::new("configmaps", "default", "b");
    let revision =
        members[2].range(RangeRequest { name: "b".into(), ..maps() }).await.unwrap().into_inner().objects[0]
            .revision;
    put(&mut members[0], 5, Transaction::delete(key, revision)).await.unwrap();

    let mut seen = Vec::new();
    while seen.len() < 4 {
        for event in watch.message().await.unwrap().unwrap().events {
            let object = event.object.clone().unwrap();
            seen.push((event.r#type(), object.name.clone(), object.revision));
        }
    }
    let names: Vec<_> = seen.iter().map(|(kind, name, _)| (*kind, name.as_str())).collect();
    use EventType::{Added, Deleted};
    assert_eq!(names, [(Added, "a"), (Added, "b"), (Added, "c"), (Deleted, "b")]);
    assert!(seen.is_sorted_by(|one, next| one.2 < next.2), "{seen:?}");

    let mut pages = Vec::new();
    let mut request = RangeRequest { limit: 2, ..maps() };
    loop {
        let page = members[1].range(request.clone()).await.unwrap().into_inner();
        assert_eq!(page.count, 3, "kube-root-ca.crt, a and c");
        pages.extend(page.objects.iter().map(|object| object.name.clone()));
        if !page.more {
            break;
        }
        let last = page.objects.last().unwrap();
        request.after = format!("{}/{}", last.namespace, last.name);
    }
    assert_eq!(pages, ["a", "c", "kube-root-ca.crt"]);
    let count =
        members[0].range(RangeRequest { count_only: true, serializable: true, ..maps() }).await.unwrap();
    assert_eq!((count.get_ref().count, count.get_ref().objects.len()), (3, 0));
    for control in controls {
        control.abort().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_and_nonsense_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let control = init(dir.path()).await;
    let mut client = admin(&control);
    let unknown = RangeRequest { resource: "pebbles".into(), ..RangeRequest::default() };
    assert_eq!(client.range(unknown).await.unwrap_err().code(), Code::InvalidArgument);
    let (resource, namespace) = ("configmaps".to_owned(), String::new());
    let future = WatchRequest { resource, namespace, after: Some(u64::MAX) };
    assert_eq!(client.watch(future).await.unwrap_err().code(), Code::FailedPrecondition);
    let nonsense = TxnRequest { transaction: vec![9, 9].into() };
    assert_eq!(client.txn(nonsense).await.unwrap_err().code(), Code::InvalidArgument);
    let transaction =
        Transaction::create(ObjectKey::new("pebbles", "", "x"), br#"{"metadata":{}}"#.as_slice().into());
    let request = Request { id: RequestId { client: 1, sequence: 1 }, transaction };
    let request = TxnRequest { transaction: encode_transaction(&request, FIRST_LEVEL) };
    assert_eq!(client.txn(request).await.unwrap_err().code(), Code::InvalidArgument);

    let large = (0..5).map(|number| Write::Put {
        key: ObjectKey::new("configmaps", "default", &format!("large-{number}")),
        draft: format!(r#"{{"metadata":{{}},"x":"{}"}}"#, "x".repeat(1 << 20)).into(),
    });
    let transaction = Transaction { preconditions: vec![], writes: large.collect() };
    let request = Request { id: RequestId { client: 1, sequence: 2 }, transaction };
    let request = TxnRequest { transaction: encode_transaction(&request, FIRST_LEVEL) };
    let refused = client.txn(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("the limit is"), "{refused}");

    let token = control.create_token(Role::Node, 60).await.unwrap();
    let joined = join(&[control.address()], &token, "n1", "127.0.0.1:7443").await.unwrap();
    let response = &joined.response;
    let config = tls::client_config(&response.serving_ca_pem, &response.certificate_pem, &joined.key_pem);
    let mut node = StoreClient::new(tls::channel(&control.address(), config.unwrap()));
    assert_eq!(node.range(maps()).await.unwrap_err().code(), Code::PermissionDenied);
    control.abort().await;
}
