//! Uploads under way: content that arrives in pieces.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    body::BodyDataStream,
    response::{IntoResponse, Response},
};
use futures::StreamExt;
use http::{HeaderMap, StatusCode, header};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use crate::blobs::{Blobs, Digest, Unfinished};
use crate::error::RegistryError;

/// Uploads under way at a time.
const UPLOADS_MAX: usize = 64;

/// An upload that nobody touched for so long makes room for another.
const ABANDONED_AFTER: Duration = Duration::from_secs(3600);

/// Until the next bytes of a piece must have come.
const BODY_PATIENCE: Duration = Duration::from_secs(60);

struct Upload {
    touched: Instant,
    /// Taken by the request that writes at the moment.
    content: Option<Unfinished>,
}

pub struct Uploads {
    blobs: Arc<Blobs>,
    by_id: Mutex<BTreeMap<String, Upload>>,
}

impl Uploads {
    pub fn new(blobs: Arc<Blobs>) -> Self {
        Self { blobs, by_id: Mutex::default() }
    }

    pub async fn begin(&self) -> Result<String, RegistryError> {
        let content = self.blobs.begin().await?;
        let id = format!("{:032x}", rand::random::<u128>());
        let mut uploads = self.by_id.lock();
        uploads.retain(|_, upload| upload.touched.elapsed() < ABANDONED_AFTER);
        if uploads.len() >= UPLOADS_MAX {
            return Err(RegistryError::too_many_uploads());
        }
        uploads.insert(id.clone(), Upload { touched: Instant::now(), content: Some(content) });
        Ok(id)
    }

    /// Adds a piece; answers the size so far in bytes.
    pub async fn append(
        &self,
        id: &str,
        start: Option<u64>,
        body: BodyDataStream,
    ) -> Result<u64, RegistryError> {
        let mut content = self.take(id)?;
        let result = match start {
            Some(start) if start != content.size => Err(RegistryError::out_of_order(content.size)),
            _ => receive(&mut content, body).await,
        };
        let size = content.size;
        self.give_back(id, content);
        result.map(|()| size)
    }

    /// Adds what is left and keeps the whole as a blob.
    pub async fn finish(&self, id: &str, digest: &Digest, body: BodyDataStream) -> Result<(), RegistryError> {
        let mut content = self.take(id)?;
        self.by_id.lock().remove(id);
        receive(&mut content, body).await?;
        self.blobs.keep(content, digest).await?;
        Ok(())
    }

    pub async fn size(&self, id: &str) -> Result<u64, RegistryError> {
        let uploads = self.by_id.lock();
        let content = uploads.get(id).and_then(|upload| upload.content.as_ref());
        content.map(|content| content.size).ok_or_else(|| RegistryError::upload_unknown(id))
    }

    pub fn cancel(&self, id: &str) -> Result<(), RegistryError> {
        self.by_id.lock().remove(id).map(|_| ()).ok_or_else(|| RegistryError::upload_unknown(id))
    }

    fn take(&self, id: &str) -> Result<Unfinished, RegistryError> {
        let mut uploads = self.by_id.lock();
        let content = uploads.get_mut(id).and_then(|upload| upload.content.take());
        content.ok_or_else(|| RegistryError::upload_unknown(id))
    }

    fn give_back(&self, id: &str, content: Unfinished) {
        if let Some(upload) = self.by_id.lock().get_mut(id) {
            *upload = Upload { touched: Instant::now(), content: Some(content) };
        }
    }
}

async fn receive(content: &mut Unfinished, mut body: BodyDataStream) -> Result<(), RegistryError> {
    loop {
        match timeout(BODY_PATIENCE, body.next()).await {
            Ok(Some(Ok(piece))) => content.append(&piece).await?,
            Ok(Some(Err(error))) => return Err(RegistryError::broke_off(&error.to_string())),
            Ok(None) => return Ok(()),
            Err(_) => return Err(RegistryError::broke_off("nothing came for a minute")),
        }
    }
}

/// Where a chunk begins, where its client says so.
pub fn range_start(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    range.trim_start_matches("bytes ").split('-').next()?.parse().ok()
}

/// More may come.
pub fn accepted(repository: &str, upload: &str, size: u64) -> Response {
    (StatusCode::ACCEPTED, headers(repository, upload, size)).into_response()
}

/// How far it is.
pub fn progress(repository: &str, upload: &str, size: u64) -> Response {
    (StatusCode::NO_CONTENT, headers(repository, upload, size)).into_response()
}

fn headers(repository: &str, upload: &str, size: u64) -> [(header::HeaderName, String); 3] {
    [
        (header::LOCATION, format!("/v2/{repository}/blobs/uploads/{upload}")),
        (header::RANGE, format!("0-{}", size.saturating_sub(1))),
        (header::HeaderName::from_static("docker-upload-uuid"), upload.to_owned()),
    ]
}
