//! What the gateway changes in the headers of requests and responses.

use crate::model::Cidr;
use http::header::{self, HeaderMap, HeaderName};
use http::{HeaderValue, Request, Uri, Version};
use std::net::IpAddr;

/// Headers of one connection, which are nobody's business beyond it (RFC 9110, 7.6.1).
const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What other headers say who the client is, to those who believe them.
const FORWARDED_PREFIX: &str = "x-forwarded-";
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

pub(super) fn host_of<B>(request: &Request<B>) -> Option<String> {
    let authority = request.uri().authority().map(|authority| authority.as_str().to_owned());
    authority.or_else(|| request.headers().get(header::HOST)?.to_str().ok().map(str::to_owned))
}

/// Makes a client's request the gateway's own: origin form, HTTP/1.1, told where it came from. Gives the client's
/// address: the peer's, or where the peer is a proxy, the one that the proxy names.
pub(super) fn prepare<B>(request: &mut Request<B>, peer: IpAddr, host: &str, proxies: &[Cidr]) -> IpAddr {
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    strip_hop_by_hop(headers);
    let peer = peer.to_canonical();
    let is_proxy = |ip: IpAddr| proxies.iter().any(|range| range.contains(ip));
    if !is_proxy(peer) {
        strip_forwarded(headers);
    }
    let before: Vec<&str> =
        headers.get_all(&FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok()).collect();
    let named = before.iter().rev().flat_map(|value| value.rsplit(','));
    let mut named = named.map_while(|entry| entry.trim().parse::<IpAddr>().ok()).map(|ip| ip.to_canonical());
    let mut client = peer;
    // What one proxy has from another it trusts; what it has from its client is the client's word.
    while is_proxy(client)
        && let Some(behind) = named.next()
    {
        client = behind;
    }
    let chain =
        before.iter().copied().map(str::to_owned).chain([peer.to_string()]).collect::<Vec<_>>().join(", ");
    if let Ok(chain) = HeaderValue::from_str(&chain) {
        headers.insert(FORWARDED_FOR, chain);
    }
    if let Ok(host) = HeaderValue::from_str(host) {
        headers.insert(header::HOST, host.clone());
        headers.entry(FORWARDED_HOST).or_insert(host);
    }
    headers.entry(FORWARDED_PROTO).or_insert(HeaderValue::from_static("http"));
    if let Ok(client) = HeaderValue::from_str(&client.to_string()) {
        headers.entry(REAL_IP).or_insert(client);
    }
    client
}

/// Removes what a client says of itself in the words of a proxy.
fn strip_forwarded(headers: &mut HeaderMap) {
    // To what runs behind CGI's names, `_` is as `-`.
    let is_told = |name: &HeaderName| {
        let name = name.as_str().replace('_', "-");
        name.starts_with(FORWARDED_PREFIX)
            || [&header::FORWARDED, &REAL_IP].iter().any(|one| one.as_str() == name)
    };
    let named: Vec<HeaderName> = headers.keys().filter(|name| is_told(name)).cloned().collect();
    for name in &named {
        headers.remove(name);
    }
}

pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP).chain([&KEEP_ALIVE]) {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a request with these headers becomes: the client, and what the endpoint is told of it.
    fn prepared(peer: &str, proxies: &[&str], given: &[(&str, &str)]) -> (String, Vec<String>) {
        let mut request = Request::get("/").header("host", "a.example");
        for (name, value) in given {
            request = request.header(*name, *value);
        }
        let mut request = request.body(()).unwrap();
        let proxies: Vec<Cidr> = proxies.iter().map(|range| range.parse().unwrap()).collect();
        let client = prepare(&mut request, peer.parse().unwrap(), "a.example", &proxies);
        let headers = request.headers();
        let mut told: Vec<String> = headers
            .iter()
            .filter(|(name, _)| *name != header::HOST)
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        told.sort();
        (client.to_string(), told)
    }

    const FORGED: [(&str, &str); 7] = [
        ("x-forwarded-for", "6.6.6.6"),
        ("x-forwarded-for", "10.0.0.9, 7.7.7.7, 10.0.0.8"),
        ("x-forwarded-host", "admin.example"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-prefix", "/admin"),
        ("x-real-ip", "6.6.6.6"),
        ("forwarded", "for=6.6.6.6"),
    ];

    #[test]
    fn a_client_does_not_say_who_it_is() {
        let own = |client: &str| {
            let told = [
                format!("x-forwarded-for: {client}"),
                "x-forwarded-host: a.example".to_owned(),
                "x-forwarded-proto: http".to_owned(),
                format!("x-real-ip: {client}"),
            ];
            (client.to_owned(), told.to_vec())
        };
        assert_eq!(prepared("9.9.9.9", &[], &[]), own("9.9.9.9"));
        assert_eq!(prepared("9.9.9.9", &["10.0.0.0/8"], &FORGED), own("9.9.9.9"));
        assert_eq!(prepared("::ffff:9.9.9.9", &["10.0.0.0/8"], &FORGED), own("9.9.9.9"));
        let to_cgi =
            [("x_forwarded_for", "6.6.6.6"), ("x-forwarded_proto", "https"), ("X_Real_IP", "6.6.6.6")];
        assert_eq!(prepared("9.9.9.9", &["10.0.0.0/8"], &to_cgi), own("9.9.9.9"));
    }

    #[test]
    fn a_configured_proxy_does() {
        let (client, told) = prepared("::ffff:10.0.0.7", &["10.0.0.0/8"], &FORGED);
        assert_eq!(client, "7.7.7.7", "the last one that is no proxy");
        assert_eq!(
            told,
            [
                "forwarded: for=6.6.6.6",
                "x-forwarded-for: 6.6.6.6, 10.0.0.9, 7.7.7.7, 10.0.0.8, 10.0.0.7",
                "x-forwarded-host: admin.example",
                "x-forwarded-prefix: /admin",
                "x-forwarded-proto: https",
                "x-real-ip: 6.6.6.6",
            ]
        );
        assert_eq!(prepared("10.0.0.7", &["10.0.0.0/8"], &[]).0, "10.0.0.7");
        assert_eq!(
            prepared("10.0.0.7", &["10.0.0.0/8"], &[("x-forwarded-for", "6.6.6.6, who")]).0,
            "10.0.0.7"
        );
    }
}
