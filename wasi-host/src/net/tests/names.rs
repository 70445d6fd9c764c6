//! Names and HTTP services of a namespace.

use super::super::{HttpBody, HttpService, NetError, Unanswered, empty_body};
use super::{POD, namespace};
use futures::future::BoxFuture;
use std::net::IpAddr;
use std::sync::Arc;

#[tokio::test]
async fn own_names_need_no_uplink() {
    let pod = namespace();
    let loopback: Vec<IpAddr> = vec!["127.0.0.1".parse().unwrap()];
    assert_eq!(pod.resolve("localhost").await, Ok(loopback.clone()));
    assert_eq!(pod.resolve("LOCALHOST.").await, Ok(loopback.clone()));
    assert_eq!(pod.resolve("app.localhost").await, Ok(loopback));
    assert_eq!(pod.resolve("web-0").await, Ok(vec![POD]));
    assert_eq!(pod.resolve("10.1.2.3").await, Ok(vec!["10.1.2.3".parse().unwrap()]));
    assert_eq!(pod.resolve("::1").await, Ok(vec!["::1".parse().unwrap()]));
    assert_eq!(pod.resolve("elsewhere").await, Err(NetError::NameUnknown));
    assert_eq!(pod.resolve("").await, Err(NetError::InvalidInput));
    assert_eq!(pod.resolve(&"x".repeat(300)).await, Err(NetError::InvalidInput));
}

struct Greeter;

impl HttpService for Greeter {
    fn call(
        &self,
        _request: http::Request<HttpBody>,
    ) -> BoxFuture<'static, Result<http::Response<HttpBody>, Unanswered>> {
        Box::pin(async { Ok(http::Response::new(empty_body())) })
    }
}

#[tokio::test]
async fn components_are_called_by_port() {
    let pod = namespace();
    assert!(pod.http_service(80).is_none());
    pod.serve_http(80, Arc::new(Greeter));
    let service = pod.http_service(80).expect("a service");
    assert_eq!(service.call(http::Request::new(empty_body())).await.unwrap().status(), 200);
    pod.scoped("other").withdraw_http();
    assert!(pod.http_service(80).is_some());
    pod.withdraw_http();
    assert!(pod.http_service(80).is_none());
}
