//! Uploads, and which of them make room.

use axum::body::Body;
use bytes::Bytes;
use http::Request;
use tempfile::TempDir;

use super::*;

fn uploads() -> (TempDir, Uploads) {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Arc::new(Blobs::open(dir.path(), || true).unwrap());
    (dir, Uploads::new(blobs))
}

fn chunk(range: Option<&str>, content: &'static [u8]) -> Result<Chunk, RegistryError> {
    let mut request = Request::new(Body::from(content));
    let headers = request.headers_mut();
    headers.extend(range.map(|range| (header::CONTENT_RANGE, range.parse().unwrap())));
    Chunk::of(request)
}

async fn status(error: RegistryError) -> (StatusCode, HeaderMap) {
    let response = error.into_response();
    (response.status(), response.headers().clone())
}

#[tokio::test]
async fn a_chunk_out_of_order_is_refused_and_the_upload_goes_on() {
    let (_dir, uploads) = uploads();
    let id = uploads.begin("u", "app").await.unwrap();
    assert_eq!(uploads.append("app", &id, chunk(Some("0-1"), b"he").unwrap()).await.unwrap(), 2);
    let digest = Digest::of(b"hello");
    for wrong in ["0-1", "3-4"] {
        let error = uploads.append("app", &id, chunk(Some(wrong), b"xx").unwrap()).await.unwrap_err();
        let (code, headers) = status(error).await;
        assert_eq!(code, StatusCode::RANGE_NOT_SATISFIABLE, "{wrong}");
        assert_eq!(headers[header::RANGE], "0-1");
        assert!(headers[header::LOCATION].to_str().unwrap().ends_with(&id));
        let error =
            uploads.finish("app", &id, &digest, chunk(Some(wrong), b"xx").unwrap()).await.unwrap_err();
        assert_eq!(status(error).await.0, StatusCode::RANGE_NOT_SATISFIABLE, "the last chunk too: {wrong}");
    }
    uploads.finish("app", &id, &digest, chunk(Some("bytes 2-4/5"), b"llo").unwrap()).await.unwrap();
    assert!(uploads.size("app", &id).is_err(), "it has ended");
}

#[tokio::test]
async fn a_chunk_is_as_long_as_its_range() {
    for wrong in ["0-1", "a-b", "5-4", "0", "", "0-18446744073709551615"] {
        let error = chunk(Some(wrong), b"hello").err().expect(wrong);
        assert_eq!(status(error).await.0, StatusCode::BAD_REQUEST, "{wrong}");
    }
}

#[tokio::test]
async fn what_is_announced_as_too_large_is_not_read() {
    let (_dir, uploads) = uploads();
    let id = uploads.begin("u", "app").await.unwrap();
    let silent = Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>());
    let announced =
        Chunk { range: None, announced: crate::blobs::BLOB_BYTES_MAX + 1, body: silent.into_data_stream() };
    let error = uploads.append("app", &id, announced).await.unwrap_err();
    assert_eq!(status(error).await.0, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn an_upload_whose_request_broke_off_goes_on_where_it_was() {
    let (_dir, uploads) = uploads();
    let id = uploads.begin("u", "app").await.unwrap();
    let first = futures::stream::once(async { Ok::<_, std::io::Error>(Bytes::from_static(b"hel")) });
    let broken = Request::new(Body::from_stream(first.chain(futures::stream::pending())));
    let writing = uploads.append("app", &id, Chunk::of(broken).unwrap());
    // The connection is lost, and with it the request.
    tokio::select! {
        _ = writing => panic!("its body has no end"),
        () = async {
            while uploads.by_id.lock()[&id].content.is_some() {
                tokio::task::yield_now().await;
            }
        } => {}
    }
    let size = uploads.size("app", &id).expect("it was given back");
    let rest = &b"hello"[size as usize..];
    uploads.finish("app", &id, &Digest::of(b"hello"), chunk(None, rest).unwrap()).await.unwrap();
}

#[tokio::test]
async fn uploads_that_nobody_goes_on_with_block_none() {
    let (dir, uploads) = uploads();
    let mut begun = vec![];
    for _ in 0..2 * places::UPLOADS_MAX {
        begun.push(uploads.begin("u", "app").await.expect("the oldest makes room"));
    }
    assert!(uploads.size("app", &begun[0]).is_err(), "it made room");
    let last = begun.last().unwrap();
    uploads.finish("app", last, &Digest::of(b"x"), chunk(None, b"x").unwrap()).await.unwrap();
    let files = std::fs::read_dir(dir.path().join("unfinished")).unwrap().count();
    assert!(files < places::UPLOADS_MAX, "what made room is off the disk: {files}");
}

#[tokio::test]
async fn an_upload_belongs_to_its_repository() {
    let (_dir, uploads) = uploads();
    let id = uploads.begin("u", "app").await.unwrap();
    assert!(uploads.append("other", &id, chunk(None, b"x").unwrap()).await.is_err());
    assert!(uploads.cancel("other", &id).is_err() && uploads.size("other", &id).is_err());
    assert_eq!(uploads.size("app", &id).unwrap(), 0);
    uploads.cancel("app", &id).unwrap();
}
