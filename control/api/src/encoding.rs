//! In which encoding an answer goes out: JSON, or YAML and Kubernetes' protobuf where the client takes no JSON.
//!
//! All answers are made in JSON. One that goes out otherwise is made anew of it, as a whole, in its user's turn for what
//! takes long; so it may not be larger than [`ENCODED_BYTES_MAX`]. A watch's events are made anew one by one, each for every
//! watch: so there may not be many of these.

use std::sync::Arc;

use axum::{
    body::{Body, to_bytes},
    response::{IntoResponse, Response},
};
use bytes::{BufMut, Bytes, BytesMut};
use coracle_objects::Endpoint;
use futures::{Stream, StreamExt};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::Value;

use crate::{
    answer::{self, MediaRange, accepted},
    body::protobuf,
    error::ApiError,
    heavy::{Bounds, LARGE_BYTES},
    path::ResourcePath,
    sending,
};

/// The media types of bodies, both ways, as errors name them.
pub const ACCEPTED: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const PROTOBUF_WATCH: &str = "application/vnd.kubernetes.protobuf;stream=watch";

/// Bytes of JSON that are made into something else; `limit=` keeps lists below.
const ENCODED_BYTES_MAX: usize = 4 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Json,
    Yaml,
    Protobuf,
}

impl Encoding {
    /// The one that a client asks for, and has the rest of the request ask for JSON in its place. JSON costs least: a client
    /// that takes it beside protobuf gets it.
    pub fn take(headers: &mut HeaderMap) -> Self {
        let ranges = accepted(headers);
        let first = ranges.iter().find(|range| range.is_json() || is_yaml(range));
        let encoding = match first {
            Some(range) if range.is_json() => return Self::Json,
            Some(_) => Self::Yaml,
            None if ranges.iter().any(is_protobuf) => Self::Protobuf,
            None => return Self::Json,
        };
        let is_its = |range: &&MediaRange<'_>| match encoding {
            Self::Protobuf => is_protobuf(range),
            _ => is_yaml(range),
        };
        let asked: Vec<String> = ranges.iter().filter(is_its).map(|range| range.of_type(JSON)).collect();
        if let Ok(asked) = HeaderValue::from_str(&asked.join(",")) {
            headers.insert(header::ACCEPT, asked);
        }
        encoding
    }

    /// Whether objects of this path's kind have this form: it must be known before anything is done.
    pub fn check(self, path: &ResourcePath) -> Result<(), ApiError> {
        let kind = &path.kind;
        let has = self != Self::Protobuf
            || path.subresource == Some(Endpoint::Scale)
            || protobuf::has(&kind.api_version(), &kind.kind);
        if has {
            Ok(())
        } else {
            Err(ApiError::NotAcceptable { accepted: "application/json, application/yaml" })
        }
    }

    /// An answer in this encoding. What is not JSON stays as it is: logs for example.
    pub async fn encode(self, answer: Response, bounds: &Bounds, user: &str) -> Response {
        if self == Self::Json || !is_in_json(&answer) {
            return answer;
        }
        self.encode_whole(answer, bounds, user).await.unwrap_or_else(IntoResponse::into_response)
    }

    async fn encode_whole(self, answer: Response, bounds: &Bounds, user: &str) -> Result<Response, ApiError> {
        let held = bounds.enter_encoded(user).await?;
        let (mut parts, body) = answer.into_parts();
        let json = to_bytes(body, ENCODED_BYTES_MAX).await.map_err(|_| {
            ApiError::BadRequest(format!(
                "the answer has more than {ENCODED_BYTES_MAX} bytes, which are sent in JSON only: accept {JSON}, or ask for \
                 less at a time with limit="
            ))
        })?;
        let encoded = bounds.work(user, move || self.encode_json(&json)).await;
        let encoded = encoded.map_err(|error| ApiError::Internal(error.to_string()))??;
        parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.media_type()));
        parts.headers.remove(header::CONTENT_LENGTH);
        Ok(sending::until_sent(Response::from_parts(parts, encoded.into()), held))
    }

    fn encode_json(self, json: &[u8]) -> Result<Bytes, ApiError> {
        let value: Value =
            serde_json::from_slice(json).map_err(|error| ApiError::Internal(error.to_string()))?;
        match self {
            Self::Json => Ok(Bytes::copy_from_slice(json)),
            Self::Yaml => {
                let text = serde_yaml_ng::to_string(&value);
                text.map(Bytes::from).map_err(|error| ApiError::Internal(error.to_string()))
            }
            Self::Protobuf => protobuf::encode(&value).map(Bytes::from).map_err(not_in_protobuf),
        }
    }

    /// The answer to a watch, of frames of JSON that each hold whole lines, one an event. There is no stream of YAML.
    pub async fn stream(
        self,
        frames: impl Stream<Item = Bytes> + Send + 'static,
        bounds: &Arc<Bounds>,
        user: &str,
    ) -> Result<Response, ApiError> {
        let (media_type, body) = match self {
            Self::Json => (JSON, Body::from_stream(frames.map(Ok::<_, axum::Error>))),
            Self::Yaml => {
                let accepted = "application/json, application/vnd.kubernetes.protobuf";
                return Err(ApiError::NotAcceptable { accepted });
            }
            Self::Protobuf => {
                let turn = bounds.enter_encoded_watch(user).await?;
                let (bounds, user) = (bounds.clone(), Arc::<str>::from(user));
                let encoded = frames.then(move |frame| {
                    let _held = &turn;
                    let (bounds, user) = (bounds.clone(), user.clone());
                    async move {
                        if frame.len() <= LARGE_BYTES {
                            return events(&frame);
                        }
                        bounds.work(&user, move || events(&frame)).await.map_err(axum::Error::new)?
                    }
                });
                (PROTOBUF_WATCH, Body::from_stream(encoded))
            }
        };
        let mut answer = answer::json_bytes(StatusCode::OK, sending::while_taken(body));
        answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
        Ok(answer)
    }

    fn media_type(self) -> &'static str {
        match self {
            Self::Json => JSON,
            Self::Yaml => YAML,
            Self::Protobuf => PROTOBUF,
        }
    }
}

fn is_yaml(range: &MediaRange<'_>) -> bool {
    range.media_type == YAML
}

fn is_protobuf(range: &MediaRange<'_>) -> bool {
    range.media_type == PROTOBUF
}

fn is_in_json(answer: &Response) -> bool {
    let headers = answer.headers();
    headers.get(header::CONTENT_TYPE).is_some_and(|media_type| media_type == JSON)
        && !headers.contains_key(header::CONTENT_ENCODING)
}

fn not_in_protobuf(error: protobuf::ProtobufError) -> ApiError {
    match error {
        protobuf::ProtobufError::UnknownKind(_) => {
            ApiError::NotAcceptable { accepted: "application/json, application/yaml" }
        }
        error => ApiError::Internal(error.to_string()),
    }
}

/// The events of a frame, each behind its length in four bytes.
fn events(frame: &[u8]) -> Result<Bytes, axum::Error> {
    let mut encoded = BytesMut::new();
    for line in frame.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let event: Value = serde_json::from_slice(line).map_err(axum::Error::new)?;
        let event = protobuf::encode_event(&event).map_err(axum::Error::new)?;
        let length = u32::try_from(event.len()).map_err(axum::Error::new)?;
        encoded.put_u32(length);
        encoded.extend_from_slice(&event);
    }
    Ok(encoded.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(accept: &str) -> (Encoding, String) {
        let mut headers = HeaderMap::from_iter([(header::ACCEPT, accept.parse().unwrap())]);
        let encoding = Encoding::take(&mut headers);
        (encoding, headers[header::ACCEPT].to_str().unwrap().to_owned())
    }

    #[test]
    fn json_is_what_goes_out_unless_it_is_not_taken() {
        let json = |accept: &str| (Encoding::Json, accept.to_owned());
        for accept in [
            "application/json",
            "*/*",
            "application/vnd.kubernetes.protobuf,application/json",
            "application/vnd.kubernetes.protobuf, */*",
            "application/json, application/yaml",
            "text/html",
        ] {
            assert_eq!(taken(accept), json(accept));
        }
        assert_eq!(taken("application/yaml"), (Encoding::Yaml, "application/json".to_owned()));
        assert_eq!(taken("application/yaml, application/json").0, Encoding::Yaml);
        assert_eq!(
            taken("application/yaml;as=Table;v=v1;g=meta.k8s.io"),
            (Encoding::Yaml, "application/json;as=Table;v=v1;g=meta.k8s.io".to_owned())
        );
        assert_eq!(
            taken("text/html, application/vnd.kubernetes.protobuf"),
            (Encoding::Protobuf, "application/json".to_owned())
        );
    }

    #[test]
    fn events_come_one_behind_the_other() {
        let line = b"{\"type\":\"ADDED\",\"object\":{\"kind\":\"ConfigMap\",\"apiVersion\":\"v1\",\"metadata\":{\"name\":\"a\"}}}\n";
        let one = events(line).unwrap();
        let length = u32::from_be_bytes(one[..4].try_into().unwrap()) as usize;
        assert_eq!(length + 4, one.len());
        assert_eq!(events(&line.repeat(2)).unwrap(), one.repeat(2));
        assert!(events(&line[..20]).is_err());
    }
}
