//! Uploads under way: content that arrives in pieces.

mod places;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    body::{BodyDataStream, HttpBody},
    extract::Request,
    response::{IntoResponse, Response},
};
use futures::StreamExt;
use http::{HeaderMap, HeaderName, StatusCode, header};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use self::places::{Occupant, Place};
use crate::{
    blobs::{Blobs, Unfinished},
    digest::Digest,
    error::RegistryError,
};

/// An upload that nobody touched for so long has been given up.
const ABANDONED_AFTER: Duration = Duration::from_secs(3600);

/// Until the next bytes of a piece must have come.
const BODY_PATIENCE: Duration = Duration::from_secs(60);

struct Upload {
    repository: String,
    user: String,
    touched: Instant,
    /// Taken by the request that writes at the moment.
    content: Option<Unfinished>,
}

/// What a request brings for an upload.
pub struct Chunk {
    /// Where it begins and ends, where its client says so.
    range: Option<(u64, u64)>,
    /// Bytes that are to come at least.
    announced: u64,
    body: BodyDataStream,
}

impl Chunk {
    pub fn of(request: Request) -> Result<Self, RegistryError> {
        let hint = request.body().size_hint();
        let range = content_range(request.headers())?;
        if let (Some((first, last)), Some(length)) = (range, hint.exact())
            && last - first + 1 != length
        {
            return Err(RegistryError::chunk_invalid(&format!("{first}-{last} are not {length} bytes")));
        }
        Ok(Self { range, announced: hint.lower(), body: request.into_body().into_data_stream() })
    }
}

pub struct Uploads {
    blobs: Arc<Blobs>,
    by_id: Mutex<BTreeMap<String, Upload>>,
}

/// The content of an upload in the hands of one request. However that ends, it is given back, so that its client may go
/// on with it.
struct Writing<'a> {
    uploads: &'a Uploads,
    id: &'a str,
    content: Option<Unfinished>,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        if let Some(upload) = self.uploads.by_id.lock().get_mut(self.id) {
            upload.touched = Instant::now();
            upload.content = self.content.take();
        }
    }
}

impl Uploads {
    pub fn new(blobs: Arc<Blobs>) -> Self {
        Self { blobs, by_id: Mutex::default() }
    }

    /// Where there is no place, the upload that was idle the longest makes one.
    pub async fn begin(&self, user: &str, repository: &str) -> Result<String, RegistryError> {
        let content = self.blobs.begin().await?;
        let id = format!("{:032x}", rand::random::<u128>());
        let mut uploads = self.by_id.lock();
        uploads.retain(|_, upload| upload.content.is_none() || upload.touched.elapsed() < ABANDONED_AFTER);
        let occupants = uploads.iter().map(|(id, upload)| Occupant {
            id,
            user: &upload.user,
            idle_since: upload.content.is_some().then_some(upload.touched),
        });
        match places::find(occupants, user) {
            Place::Free => {}
            Place::Of(idle) => _ = uploads.remove(&idle),
            Place::None => return Err(RegistryError::too_many_uploads()),
        }
        let upload = Upload {
            repository: repository.to_owned(),
            user: user.to_owned(),
            touched: Instant::now(),
            content: Some(content),
        };
        uploads.insert(id.clone(), upload);
        Ok(id)
    }

    /// Adds a piece; answers the size so far in bytes.
    pub async fn append(&self, repository: &str, id: &str, chunk: Chunk) -> Result<u64, RegistryError> {
        let mut writing = self.take(repository, id)?;
        writing.receive(repository, chunk).await
    }

    /// Adds what is left and keeps the whole as a blob. What is not what its digest says is gone.
    pub async fn finish(
        &self,
        repository: &str,
        id: &str,
        digest: &Digest,
        chunk: Chunk,
    ) -> Result<(), RegistryError> {
        let mut writing = self.take(repository, id)?;
        writing.receive(repository, chunk).await?;
        let content = writing.content.take().ok_or_else(|| RegistryError::upload_unknown(id))?;
        self.by_id.lock().remove(id);
        self.blobs.keep(content, digest).await?;
        self.blobs.show(repository, digest).await?;
        Ok(())
    }

    pub fn size(&self, repository: &str, id: &str) -> Result<u64, RegistryError> {
        let uploads = self.by_id.lock();
        let upload = uploads.get(id).filter(|upload| upload.repository == repository);
        let content = upload.and_then(|upload| upload.content.as_ref());
        content.map(|content| content.size).ok_or_else(|| RegistryError::upload_unknown(id))
    }

    pub fn cancel(&self, repository: &str, id: &str) -> Result<(), RegistryError> {
        let mut uploads = self.by_id.lock();
        if uploads.get(id).is_none_or(|upload| upload.repository != repository) {
            return Err(RegistryError::upload_unknown(id));
        }
        uploads.remove(id);
        Ok(())
    }

    fn take<'a>(&'a self, repository: &str, id: &'a str) -> Result<Writing<'a>, RegistryError> {
        let mut uploads = self.by_id.lock();
        let upload = uploads.get_mut(id).filter(|upload| upload.repository == repository);
        let content = upload.and_then(|upload| upload.content.take());
        let content = content.ok_or_else(|| RegistryError::upload_unknown(id))?;
        Ok(Writing { uploads: self, id, content: Some(content) })
    }
}

impl Writing<'_> {
    async fn receive(&mut self, repository: &str, mut chunk: Chunk) -> Result<u64, RegistryError> {
        let id = self.id;
        let content = self.content.as_mut().ok_or_else(|| RegistryError::upload_unknown(id))?;
        if chunk.range.is_some_and(|(first, _)| first != content.size) {
            return Err(RegistryError::out_of_order(content.size, headers(repository, id, content.size)));
        }
        // What is too much in all is refused before any of it has come.
        content.takes(chunk.announced)?;
        loop {
            match timeout(BODY_PATIENCE, chunk.body.next()).await {
                Ok(Some(Ok(piece))) => content.append(&piece).await?,
                Ok(Some(Err(error))) => return Err(RegistryError::broke_off(&error.to_string())),
                Ok(None) => return Ok(content.size),
                Err(_) => return Err(RegistryError::broke_off("nothing came for a minute")),
            }
        }
    }
}

/// Where a chunk begins and ends, where its client says so: `0-1023`, or as RFC 9110 writes it, `bytes 0-1023/*`.
fn content_range(headers: &HeaderMap) -> Result<Option<(u64, u64)>, RegistryError> {
    let Some(value) = headers.get(header::CONTENT_RANGE) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    let range = text.strip_prefix("bytes").unwrap_or(text).split('/').next().unwrap_or_default().trim();
    let ends =
        range.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
    match ends.filter(|(first, last): &(u64, u64)| first <= last && *last < u64::MAX) {
        Some(range) => Ok(Some(range)),
        None => Err(RegistryError::chunk_invalid(&format!("{text:?} is no range as 0-1023"))),
    }
}

/// More may come.
pub fn accepted(repository: &str, upload: &str, size: u64) -> Response {
    (StatusCode::ACCEPTED, headers(repository, upload, size)).into_response()
}

/// How far it is.
pub fn progress(repository: &str, upload: &str, size: u64) -> Response {
    (StatusCode::NO_CONTENT, headers(repository, upload, size)).into_response()
}

fn headers(repository: &str, upload: &str, size: u64) -> [(HeaderName, String); 3] {
    [
        (header::LOCATION, format!("/v2/{repository}/blobs/uploads/{upload}")),
        (header::RANGE, format!("0-{}", size.saturating_sub(1))),
        (HeaderName::from_static("docker-upload-uuid"), upload.to_owned()),
    ]
}

#[cfg(test)]
mod tests;
