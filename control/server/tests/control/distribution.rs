//! The OCI distribution API as its specification has it: each kind of request, and each way in which it may be wrong.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use coracle_api::Storage;
use coracle_objects::{ObjectKey, Transaction};
use coracle_proto::{
    join::{Role, join},
    tls,
};
use coracle_server::Control;
use http::{Method, Response, StatusCode};
use hyper::body::Bytes;
use rustls::ClientConfig;
use serde_json::{Value, json};
use sha2::{Digest, Sha256, Sha512};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::bench::{admin, client, init, send, send_with, stranger, three};

const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A control node, and its administrator as a client of its registry.
struct Bench {
    _dir: TempDir,
    control: Control,
    user: Client,
}

struct Client {
    address: String,
    config: ClientConfig,
    authorization: String,
}

impl Bench {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let control = init(dir.path()).await;
        let user = Client::administrator(&control);
        Self { _dir: dir, control, user }
    }
}

impl Client {
    fn administrator(control: &Control) -> Self {
        Self { address: control.address(), config: admin(control), authorization: String::new() }
    }

    /// Without a certificate, and with a password.
    fn logged_in(control: &Control, password: &str) -> Self {
        let authorization = format!("Basic {}", STANDARD.encode(format!("anyone:{password}")));
        Self { address: control.address(), config: stranger(control), authorization }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Response<Bytes> {
        let mut headers = headers.to_vec();
        if !self.authorization.is_empty() {
            headers.push(("authorization", &self.authorization));
        }
        send_with(&self.address, &self.config, method, path, &headers, body).await
    }

    /// The status that the head of a request gets which announces so many bytes, none of which come.
    async fn announce(&self, method: &str, path: &str, bytes: u64) -> u16 {
        let mut stream = tls::connect(&self.address, self.config.clone().into()).await.unwrap();
        let host = &self.address;
        let head = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {bytes}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; "HTTP/1.1 200".len()];
        stream.read_exact(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer[9..]).parse().unwrap()
    }

    /// The status of a request that is refused while its body is sent on for a while.
    async fn send_on(&self, method: &str, path: &str, pieces: usize) -> u16 {
        let piece = [b' '; 16 * 1024];
        let mut stream = tls::connect(&self.address, self.config.clone().into()).await.unwrap();
        let (host, authorization, bytes) = (&self.address, &self.authorization, pieces * piece.len());
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: {authorization}\r\ncontent-length: {bytes}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..pieces {
            tokio::time::sleep(Duration::from_millis(10)).await;
            stream.write_all(&piece).await.unwrap();
        }
        let mut answer = [0; "HTTP/1.1 200".len()];
        stream.read_exact(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer[9..]).parse().unwrap()
    }

    async fn get(&self, path: &str) -> Response<Bytes> {
        self.send(Method::GET, path, &[], b"").await
    }

    async fn head(&self, path: &str) -> StatusCode {
        self.send(Method::HEAD, path, &[], b"").await.status()
    }

    async fn delete(&self, path: &str) -> StatusCode {
        self.send(Method::DELETE, path, &[], b"").await.status()
    }

    async fn push_blob(&self, repository: &str, content: &[u8]) -> String {
        let digest = sha256(content);
        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        let pushed = self.send(Method::POST, &path, &[], content).await;
        assert_eq!(pushed.status(), StatusCode::CREATED, "{:?}", pushed.body());
        digest
    }

    async fn put(&self, repository: &str, reference: &str, manifest: &Value) -> Response<Bytes> {
        let path = format!("/v2/{repository}/manifests/{reference}");
        let media_type = manifest["mediaType"].as_str().unwrap_or(IMAGE);
        let body = manifest.to_string();
        self.send(Method::PUT, &path, &[("content-type", media_type)], body.as_bytes()).await
    }

    /// Pushes a manifest that is taken; its digest.
    async fn push(&self, repository: &str, reference: &str, manifest: &Value) -> String {
        let digest = sha256(manifest.to_string().as_bytes());
        let reference = if reference.is_empty() { digest.as_str() } else { reference };
        let pushed = self.put(repository, reference, manifest).await;
        assert_eq!(pushed.status(), StatusCode::CREATED, "{:?}", pushed.body());
        assert_eq!(pushed.headers()["docker-content-digest"], digest.as_str());
        digest
    }
}

fn sha256(content: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(content)))
}

fn layer(content: &[u8]) -> Value {
    json!({ "mediaType": "application/wasm", "digest": sha256(content), "size": content.len() })
}

fn image(content: &[u8]) -> Value {
    json!({ "schemaVersion": 2, "mediaType": IMAGE, "layers": [layer(content)] })
}

fn index_of(manifest: &Value) -> Value {
    let text = manifest.to_string();
    let platform = json!({ "os": "wasi", "architecture": "wasm" });
    let listed = json!({ "mediaType": IMAGE, "digest": sha256(text.as_bytes()), "size": text.len(),
        "platform": platform });
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [listed] })
}

fn code(answer: &Response<Bytes>) -> String {
    let body: Value = serde_json::from_slice(answer.body()).unwrap();
    body["errors"][0]["code"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_a_password_for_its_role() {
    let bench = Bench::start().await;
    let stranger = Client { authorization: String::new(), ..Client::logged_in(&bench.control, "") };
    let wrong = Client::logged_in(&bench.control, "ab.cd");
    for nobody in [&stranger, &wrong] {
        let answer = nobody.get("/v2/").await;
        assert_eq!((answer.status(), code(&answer).as_str()), (StatusCode::UNAUTHORIZED, "UNAUTHORIZED"));
        assert!(answer.headers()["www-authenticate"].to_str().unwrap().starts_with("Basic realm="));
    }
    // Also where more would come than is taken of strangers.
    assert_eq!(stranger.announce("PUT", "/v2/app/manifests/1", 100_000).await, 401);

    let token = bench.control.create_token(Role::Pusher, 60).await.unwrap().proof();
    let pusher = Client::logged_in(&bench.control, &token);
    assert_eq!(pusher.get("/v2/").await.status(), StatusCode::OK);
    pusher.push_blob("team/app", &[7; 300_000]).await;
    let mut manifest = image(&[7; 300_000]);
    // More than a connection without a certificate may have in flight.
    manifest["annotations"] = json!({ "large": "x".repeat(1_000_000) });
    pusher.push("team/app", "1", &manifest).await;

    let token = bench.control.create_token(Role::Reader, 60).await.unwrap().proof();
    let reader = Client::logged_in(&bench.control, &token);
    assert_eq!(reader.get("/v2/team/app/manifests/1").await.status(), StatusCode::OK);
    assert_eq!(reader.send_on("PUT", "/v2/team/app/manifests/2", 20).await, 403);
    let refused = reader.put("team/app", "2", &manifest).await;
    assert_eq!((refused.status(), code(&refused).as_str()), (StatusCode::FORBIDDEN, "DENIED"));
    for client in [&pusher, &reader] {
        let elsewhere = client.get("/api/v1/pods").await.status();
        assert_eq!(elsewhere, StatusCode::UNAUTHORIZED, "a password is nothing to the API");
    }
    bench.control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_is_checked_when_it_comes() {
    let bench = Bench::start().await;
    bench.user.push_blob("app", b"blob").await;
    let sized = |size: u64| {
        let mut manifest = image(b"blob");
        manifest["layers"][0]["size"] = size.into();
        manifest
    };
    let twice = json!({ "layers": [layer(b"blob"), layer(b"blob")] });
    for (manifest, expected) in [
        (sized(3), "SIZE_INVALID"),
        (sized(1 << 40), "SIZE_INVALID"),
        (twice, "MANIFEST_INVALID"),
        (json!({ "schemaVersion": 2 }), "MANIFEST_INVALID"),
        (image(b"other"), "MANIFEST_BLOB_UNKNOWN"),
    ] {
        let answer = bench.user.put("app", "1", &manifest).await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{manifest}");
        assert_eq!(code(&answer), expected, "{manifest}");
    }
    let other = bench.user.put("app", &sha256(b"another"), &sized(4)).await;
    assert_eq!(code(&other), "DIGEST_INVALID");
    assert_eq!(bench.user.announce("PUT", "/v2/app/manifests/1", 4 * 1024 * 1024 + 1).await, 413);
    assert_eq!(bench.user.get("/v2/app/tags/list").await.status(), StatusCode::NOT_FOUND, "nothing was kept");
    let foreign = json!({ "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "digest": sha256(b"elsewhere"), "size": 7, "urls": ["https://example.com/x"] });
    bench.user.push("app", "1", &json!({ "layers": [layer(b"blob"), foreign] })).await;
    bench.control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_deleted_is_gone_and_nothing_else() {
    let bench = Bench::start().await;
    let user = &bench.user;
    let blob = user.push_blob("app", b"blob").await;
    let manifest = image(b"blob");
    let digest = user.push("app", "1", &manifest).await;
    user.push("app", "2", &manifest).await;
    user.push("other", "1", &manifest).await;
    let (by_digest, blob_path) = (format!("/v2/app/manifests/{digest}"), format!("/v2/app/blobs/{blob}"));

    let refused = user.send(Method::DELETE, &blob_path, &[], b"").await;
    assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED, "an image is made of it");
    assert!(String::from_utf8_lossy(refused.body()).contains("app:"), "{:?}", refused.body());

    assert_eq!(user.delete("/v2/app/manifests/1").await, StatusCode::ACCEPTED);
    assert_eq!(user.delete("/v2/app/manifests/1").await, StatusCode::NOT_FOUND);
    assert_eq!(user.head("/v2/app/manifests/1").await, StatusCode::NOT_FOUND);
    assert_eq!(user.head("/v2/app/manifests/2").await, StatusCode::OK);
    assert_eq!(user.delete("/v2/app/manifests/2").await, StatusCode::ACCEPTED);
    assert_eq!(user.head(&by_digest).await, StatusCode::OK, "a manifest stays without a tag");
    let tags = user.get("/v2/app/tags/list").await;
    assert_eq!(tags.body().as_ref(), br#"{"name":"app","tags":[]}"#);

    assert_eq!(user.delete(&by_digest).await, StatusCode::ACCEPTED);
    assert_eq!(user.delete(&by_digest).await, StatusCode::NOT_FOUND);
    for gone in [by_digest.clone(), format!("/v2/app/blobs/{digest}")] {
        assert_eq!(user.head(&gone).await, StatusCode::NOT_FOUND, "{gone}");
    }
    assert_eq!(user.delete(&blob_path).await, StatusCode::ACCEPTED);
    assert_eq!(user.delete(&blob_path).await, StatusCode::NOT_FOUND);
    assert_eq!(user.get(&blob_path).await.status(), StatusCode::NOT_FOUND);

    let pulled = user.get(&format!("/v2/other/blobs/{blob}")).await;
    assert_eq!(pulled.body().as_ref(), b"blob", "another repository has what it had");
    let mount = format!("/v2/app/blobs/uploads/?mount={blob}&from=other");
    assert_eq!(user.send(Method::POST, &mount, &[], b"").await.status(), StatusCode::CREATED);
    assert_eq!(user.head(&blob_path).await, StatusCode::OK);
    user.push("app", "1", &manifest).await;
    assert_eq!(user.head(&by_digest).await, StatusCode::OK, "it came again");
    // A manifest that is deleted takes its tags with it.
    assert_eq!(user.delete(&by_digest).await, StatusCode::ACCEPTED);
    assert_eq!(user.head("/v2/app/manifests/1").await, StatusCode::NOT_FOUND);
    bench.control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_at_one_member_counts_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let controls = three(dir.path()).await;
    let users: Vec<Client> = controls.iter().map(Client::administrator).collect();
    let blob = users[1].push_blob("app", b"blob").await;
    let digest = users[1].push("app", "1", &image(b"blob")).await;
    for user in &users {
        assert_eq!(user.head(&format!("/v2/app/manifests/{digest}")).await, StatusCode::OK);
        assert_eq!(user.head(&format!("/v2/app/blobs/{blob}")).await, StatusCode::OK);
    }
    assert_eq!(users[0].delete(&format!("/v2/app/manifests/{digest}")).await, StatusCode::ACCEPTED);
    assert_eq!(users[2].delete(&format!("/v2/app/blobs/{blob}")).await, StatusCode::ACCEPTED);
    for user in &users {
        assert_eq!(user.head("/v2/app/manifests/1").await, StatusCode::NOT_FOUND);
        assert_eq!(user.head(&format!("/v2/app/manifests/{digest}")).await, StatusCode::NOT_FOUND);
        assert_eq!(user.head(&format!("/v2/app/blobs/{blob}")).await, StatusCode::NOT_FOUND);
    }
    // What comes again at one member is everywhere once an image names it.
    users[0].push_blob("app", b"blob").await;
    users[0].push("app", "1", &image(b"blob")).await;
    for user in &users {
        assert_eq!(user.head(&format!("/v2/app/blobs/{blob}")).await, StatusCode::OK);
    }
    futures::future::join_all(controls.into_iter().map(Control::shutdown)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_index_is_made_of_stays_and_runs() {
    let bench = Bench::start().await;
    let user = &bench.user;
    let blob = user.push_blob("app", b"blob").await;
    let manifest = image(b"blob");
    let early = user.put("app", "all", &index_of(&manifest)).await;
    assert_eq!(code(&early), "MANIFEST_BLOB_UNKNOWN");
    let part = user.push("app", "", &manifest).await;
    let pushed = user.put("app", "all", &index_of(&manifest)).await;
    assert_eq!(pushed.status(), StatusCode::CREATED);
    let part = format!("/v2/app/manifests/{part}");
    assert_eq!(user.delete(&part).await, StatusCode::METHOD_NOT_ALLOWED, "a tag reaches it");

    // A node whose pod names the index gets all that it is made of, and no more.
    let token = bench.control.create_token(Role::Node, 60).await.unwrap();
    let joined = join(&[bench.control.address()], &token, "n1", "127.0.0.1:7443").await.unwrap();
    let response = &joined.response;
    let config =
        tls::client_config(&response.serving_ca_pem, &response.certificate_pem, &joined.key_pem).unwrap();
    let node = Client { address: bench.control.address(), config, authorization: String::new() };
    let other = user.push_blob("app", b"of another image").await;
    let wanted = ["/v2/app/manifests/all", &part, &format!("/v2/app/blobs/{blob}")];
    for path in wanted {
        assert_eq!(node.get(path).await.status(), StatusCode::NOT_FOUND, "{path}");
    }
    let pod = json!({
        "metadata": { "name": "p", "namespace": "default", "uid": "u" },
        "spec": { "nodeName": "n1", "containers": [{ "name": "c", "image": "app:all" }] },
    });
    let made = Transaction::create(ObjectKey::new("pods", "default", "p"), pod.to_string().into());
    bench.control.storage().propose(made).await.unwrap().unwrap();
    for path in wanted {
        assert_eq!(node.get(path).await.status(), StatusCode::OK, "{path}");
    }
    assert_eq!(node.get(&format!("/v2/app/blobs/{other}")).await.status(), StatusCode::NOT_FOUND);

    assert_eq!(user.delete("/v2/app/manifests/all").await, StatusCode::ACCEPTED);
    assert_eq!(user.delete(&part).await, StatusCode::ACCEPTED, "no tag reaches it any more");
    bench.control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn referrers_are_listed_by_what_they_are_about() {
    let bench = Bench::start().await;
    let user = &bench.user;
    user.push_blob("app", b"blob").await;
    let subject = user.push("app", "1", &image(b"blob")).await;
    let about = |artifact_type: &str, subject: &str| {
        let mut manifest = image(b"blob");
        manifest["artifactType"] = artifact_type.into();
        manifest["subject"] = json!({ "mediaType": IMAGE, "digest": subject, "size": 1 });
        manifest["annotations"] = json!({ "of": artifact_type });
        manifest
    };
    let missing = sha256(b"not pushed yet");
    for subject in [&subject, &missing] {
        let pushed = user.put("app", &format!("sig-{}", &subject[7..15]), &about("sig", subject)).await;
        assert_eq!(pushed.status(), StatusCode::CREATED);
        assert_eq!(pushed.headers()["oci-subject"], subject.as_str());
    }
    let bill = user.push("app", "", &about("bill+json", &subject)).await;
    let listed = async |path: &str| {
        let answer = user.get(path).await;
        assert_eq!(
            (answer.status(), &answer.headers()["content-type"]),
            (StatusCode::OK, &INDEX.parse().unwrap())
        );
        let applied = answer.headers().get("oci-filters-applied").is_some();
        let index: Value = serde_json::from_slice(answer.body()).unwrap();
        (index["manifests"].as_array().unwrap().clone(), applied)
    };
    let (all, applied) = listed(&format!("/v2/app/referrers/{subject}")).await;
    assert_eq!((all.len(), applied), (2, false));
    let (bills, applied) = listed(&format!("/v2/app/referrers/{subject}?artifactType=bill%2Bjson")).await;
    let size = about("bill+json", &subject).to_string().len();
    let expected = json!([{ "mediaType": IMAGE, "digest": bill, "size": size, "artifactType": "bill+json",
        "annotations": { "of": "bill+json" } }]);
    assert_eq!((json!(bills), applied), (expected, true));
    for nothing in ["/v2/app/referrers/", "/v2/nothing/referrers/"] {
        assert_eq!(listed(&format!("{nothing}{}", sha256(b"x"))).await.0.len(), 0);
    }
    assert_eq!(user.get("/v2/app/referrers/sha256:1").await.status(), StatusCode::BAD_REQUEST);
    assert_eq!(user.delete(&format!("/v2/app/manifests/{bill}")).await, StatusCode::ACCEPTED);
    assert_eq!(listed(&format!("/v2/app/referrers/{subject}")).await.0.len(), 1);
    bench.control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_of_blobs_and_pages_of_tags_are_given() {
    let bench = Bench::start().await;
    let user = &bench.user;
    let blob = user.push_blob("app", b"0123456789").await;
    let path = format!("/v2/app/blobs/{blob}");
    let etag = format!("\"{blob}\"");
    let ranged = async |headers: &[(&str, &str)]| user.send(Method::GET, &path, headers, b"").await;
    for (headers, status, body, content_range) in [
        (vec![("range", "bytes=2-4")], 206, "234", "bytes 2-4/10"),
        (vec![("range", "bytes=-3")], 206, "789", "bytes 7-9/10"),
        (vec![("range", "bytes=8-99"), ("if-range", etag.as_str())], 206, "89", "bytes 8-9/10"),
        (vec![("range", "bytes=2-4"), ("if-range", "\"other\"")], 200, "0123456789", ""),
        (vec![("range", "bytes=10-")], 416, "", "bytes */10"),
    ] {
        let answer = ranged(&headers).await;
        assert_eq!(answer.status().as_u16(), status, "{headers:?}");
        assert!(status == 416 || answer.body().as_ref() == body.as_bytes(), "{headers:?}");
        let found = answer.headers().get("content-range").map_or("", |value| value.to_str().unwrap());
        assert_eq!(found, content_range, "{headers:?}");
    }
    for tag in ["a", "b", "c"] {
        user.push("app", tag, &image(b"0123456789")).await;
    }
    let first = user.get("/v2/app/tags/list?n=2").await;
    assert_eq!(first.body().as_ref(), br#"{"name":"app","tags":["a","b"]}"#);
    let link = first.headers()["link"].to_str().unwrap();
    let next = link.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\"")).expect("a link");
    let second = user.get(next).await;
    assert_eq!(second.body().as_ref(), br#"{"name":"app","tags":["c"]}"#);
    assert!(second.headers().get("link").is_none(), "it is the last");
    assert_eq!(user.get("/v2/app/tags/list?n=x").await.status(), StatusCode::BAD_REQUEST);
    bench.control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_is_pushed_and_tagged_by_other_digests() {
    let bench = Bench::start().await;
    let user = &bench.user;
    let sha512 = |content: &[u8]| format!("sha512:{}", hex::encode(Sha512::digest(content)));
    let begun = user.send(Method::POST, "/v2/app/blobs/uploads/?digest-algorithm=sha512", &[], b"").await;
    assert_eq!(begun.status(), StatusCode::ACCEPTED);
    let upload = begun.headers()["location"].to_str().unwrap().to_owned();
    let ended = user.send(Method::PUT, &format!("{upload}?digest={}", sha512(b"blob")), &[], b"blob").await;
    assert_eq!(ended.status(), StatusCode::CREATED);
    let layer = json!({ "mediaType": "application/x", "digest": sha512(b"blob"), "size": 4 });
    let manifest = json!({ "schemaVersion": 2, "mediaType": IMAGE, "layers": [layer] });
    let digest = sha512(manifest.to_string().as_bytes());
    let pushed = user.put("app", &format!("{digest}?tag=a&tag=b"), &manifest).await;
    assert_eq!(pushed.status(), StatusCode::CREATED, "{:?}", pushed.body());
    assert_eq!(pushed.headers()["oci-tag"], "a, b");
    for reference in [digest.as_str(), "a", "b"] {
        let pulled = user.get(&format!("/v2/app/manifests/{reference}")).await;
        assert_eq!(pulled.headers()["docker-content-digest"], digest.as_str(), "{reference}");
    }
    let unknown = user.send(Method::POST, "/v2/app/blobs/uploads/?digest-algorithm=md5", &[], b"").await;
    assert_eq!(unknown.status(), StatusCode::BAD_REQUEST);
    bench.control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_uploads_and_large_words_hold_up_nobody() {
    let bench = Bench::start().await;
    let user = &bench.user;
    for _ in 0..70 {
        let begun = user.send(Method::POST, "/v2/app/blobs/uploads/", &[], b"").await;
        assert_eq!(begun.status(), StatusCode::ACCEPTED);
    }
    user.push_blob("app", b"blob").await;
    // Refused by the head alone: not a byte of it comes.
    let begun = user.send(Method::POST, "/v2/app/blobs/uploads/", &[], b"").await;
    let upload = begun.headers()["location"].to_str().unwrap();
    assert_eq!(user.announce("PATCH", upload, 1_000_000_000_000).await, 413);
    bench.control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn manifests_of_versions_before_are_found() {
    let bench = Bench::start().await;
    let user = &bench.user;
    user.push_blob("app", b"blob").await;
    let manifest = image(b"blob");
    let mut signature = image(b"blob");
    let subject = sha256(manifest.to_string().as_bytes());
    signature["subject"] = json!({ "mediaType": IMAGE, "digest": subject, "size": 1 });
    // They were blobs, which an index under the tag of the subject named.
    let digest = user.push_blob("app", signature.to_string().as_bytes()).await;
    user.push("app", "1", &manifest).await;
    let mut index = index_of(&signature);
    index["manifests"][0].as_object_mut().unwrap().remove("platform");
    user.push("app", &subject.replace(':', "-"), &index).await;
    assert_eq!(user.head(&format!("/v2/app/manifests/{digest}")).await, StatusCode::OK);
    let listed = user.get(&format!("/v2/app/referrers/{subject}")).await;
    let listed: Value = serde_json::from_slice(listed.body()).unwrap();
    assert_eq!(listed["manifests"][0]["digest"], digest.as_str());
    let artifacts = client(&bench.control).await;
    let request = http::Request::get("/apis/coracle.dev/v1/artifacts").body(vec![]).unwrap();
    let objects: Value = artifacts.request(request).await.unwrap();
    assert_eq!(objects["items"].as_array().unwrap().len(), 2, "one for each tag");
    let answer = send(&user.address, &user.config, Method::GET, "/v2/app/manifests/2", b"").await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    bench.control.shutdown().await;
}
