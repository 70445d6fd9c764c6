//! Lists, made as they are taken: a list under way holds the objects that it shows, which it shares with the state, and
//! one frame.

use std::{convert::Infallible, sync::Arc, vec};

use axum::body::Body;
use bytes::Bytes;
use coracle_objects::{Kind, Object};
use futures::stream;
use jiff::Timestamp;

use crate::{
    answer::{self, Form, ListMeta},
    heavy::Bounds,
    sending::FRAME_BYTES,
    table,
};

/// So much of objects is parsed for one frame of a list that shows something else than their bytes.
const PARSED_BYTES_MAX: usize = 1024 * 1024;

/// An object that is larger is a frame of its own, and shares its bytes with the state.
const COPIED_BYTES_MAX: usize = 16 * 1024;

/// A list of objects in a form.
pub struct Listing {
    kind: Arc<Kind>,
    form: Form,
    now: Timestamp,
    objects: vec::IntoIter<Arc<Object>>,
    /// What comes next; the head at first.
    buffer: Vec<u8>,
    /// What comes after the buffer.
    large: Option<Bytes>,
    first: bool,
    ended: bool,
}

impl Listing {
    pub fn new(
        kind: Arc<Kind>,
        objects: Vec<Arc<Object>>,
        form: Form,
        now: Timestamp,
        meta: &ListMeta,
    ) -> Self {
        let head = match form {
            Form::Table { version, .. } => table::head(&kind, version, meta, true),
            Form::Object => head(&kind.list, &kind.api_version(), meta),
            Form::Metadata { version } => {
                head("PartialObjectMetadataList", &format!("meta.k8s.io/{version}"), meta)
            }
        };
        let objects = objects.into_iter();
        Self { kind, form, now, objects, buffer: head.into_bytes(), large: None, first: true, ended: false }
    }

    /// The list as a body: a small one whole, a larger one frame by frame. What has to be parsed for that is parsed where
    /// it is in nobody's way, in turns with what else is heavy.
    pub fn body(mut self, bounds: &Arc<Bounds>, user: &str) -> Body {
        let bytes: usize = self.objects.as_slice().iter().map(|object| object.json.len()).sum();
        if bytes <= FRAME_BYTES {
            let mut whole = Vec::with_capacity(bytes + self.buffer.len() + 256);
            while let Some(part) = self.next() {
                if whole.is_empty() && self.is_over() {
                    return part.into();
                }
                whole.extend_from_slice(&part);
            }
            return whole.into();
        }
        if self.form == Form::Object && !self.kind.is_converted() {
            return Body::from_stream(stream::unfold(self, |mut listing| async move {
                let part = listing.next()?;
                Some((Ok::<_, Infallible>(part), listing))
            }));
        }
        let (bounds, user) = (bounds.clone(), user.to_owned());
        Body::from_stream(stream::try_unfold(self, move |mut listing| {
            let (bounds, user) = (bounds.clone(), user.clone());
            async move {
                let work = move || (listing.next(), listing);
                let (part, listing) = bounds.work(&user, work).await?;
                Ok::<_, std::io::Error>(part.map(|part| (part, listing)))
            }
        }))
    }

    fn is_over(&self) -> bool {
        self.ended && self.buffer.is_empty() && self.large.is_none()
    }

    /// The next part; None behind the last.
    fn next(&mut self) -> Option<Bytes> {
        if let Some(large) = self.large.take() {
            return Some(large);
        }
        let mut seen = 0;
        while self.buffer.len() < FRAME_BYTES
            && seen < PARSED_BYTES_MAX
            && self.large.is_none()
            && !self.ended
        {
            let Some(object) = self.objects.next() else {
                self.buffer.extend_from_slice(b"]}");
                self.ended = true;
                break;
            };
            if !std::mem::take(&mut self.first) {
                self.buffer.push(b',');
            }
            seen += object.json.len();
            self.put(&object);
        }
        let part = std::mem::take(&mut self.buffer);
        (!part.is_empty()).then(|| part.into())
    }

    fn put(&mut self, object: &Object) {
        let bytes = match self.form {
            Form::Object => answer::present(&self.kind, object),
            Form::Metadata { version } => answer::metadata_only(object, version),
            Form::Table { version, include } => {
                return table::row(&self.kind, object, include, version, self.now, &mut self.buffer);
            }
        };
        if bytes.len() > COPIED_BYTES_MAX {
            self.large = Some(bytes);
        } else {
            self.buffer.extend_from_slice(&bytes);
        }
    }
}

fn head(kind: &str, api_version: &str, meta: &ListMeta) -> String {
    format!(r#"{{"kind":"{kind}","apiVersion":"{api_version}","metadata":{},"items":["#, meta.json())
}
