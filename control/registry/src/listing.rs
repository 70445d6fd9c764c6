//! The tags of a repository, a page at a time.

use axum::response::{IntoResponse, Response};
use coracle_api::Storage;
use http::header;
use serde_json::json;

use crate::{
    Registry, artifacts,
    error::RegistryError,
    path::{Query, encode},
};

/// Names in one answer.
const PAGE_MAX: usize = 1000;

impl<S: Storage> Registry<S> {
    pub(super) async fn list_tags(&self, repository: &str, query: &Query) -> Result<Response, RegistryError> {
        let length = page_length(query)?;
        let view = self.storage.linearizable().await.map_err(RegistryError::unavailable)?;
        let tags =
            artifacts::tags(&view, repository).ok_or_else(|| RegistryError::name_unknown(repository))?;
        let (tags, next) = page(tags, query.get("last"), length);
        let body = axum::Json(json!({ "name": repository, "tags": tags }));
        Ok(match next {
            None => body.into_response(),
            Some(last) => {
                let next = format!("/v2/{repository}/tags/list?n={length}&last={}", encode(&last));
                ([(header::LINK, link(&next))], body).into_response()
            }
        })
    }
}

/// Where the next page is. Source: RFC 8288.
pub fn link(target: &str) -> String {
    format!("<{target}>; rel=\"next\"")
}

fn page_length(query: &Query) -> Result<usize, RegistryError> {
    let Some(text) = query.get("n") else { return Ok(PAGE_MAX) };
    let length: usize =
        text.parse().map_err(|_| RegistryError::query_invalid(&format!("n: {text:?} is no number")))?;
    Ok(length.min(PAGE_MAX))
}

/// So many of the names behind `last`, and behind which of them there are more.
fn page(mut names: Vec<String>, last: Option<&str>, length: usize) -> (Vec<String>, Option<String>) {
    if let Some(last) = last {
        names.retain(|name| name.as_str() > last);
    }
    let has_more = names.len() > length;
    names.truncate(length);
    let next = names.last().filter(|_| has_more).cloned();
    (names, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_each_other_to_the_end() {
        let names = || ["a", "b", "c", "d", "e"].map(str::to_owned).to_vec();
        let (mut last, mut seen) = (None, vec![]);
        loop {
            let (names, next) = page(names(), last.as_deref(), 2);
            seen.extend(names);
            last = next;
            if last.is_none() {
                break;
            }
        }
        assert_eq!(seen, names());
        assert_eq!(page(names(), None, 5).1, None, "what is complete has no next page");
        assert_eq!(page(names(), None, 0), (vec![], None));
        assert_eq!(page(names(), Some("bb"), 1), (vec!["c".to_owned()], Some("c".to_owned())));
        assert!(page_length(&Query::parse("n=-1")).is_err() && page_length(&Query::parse("n=x")).is_err());
        assert_eq!(page_length(&Query::parse("n=9999999")).unwrap(), PAGE_MAX);
    }
}
