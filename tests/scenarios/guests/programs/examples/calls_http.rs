//! A notifier that sends what its settings say, and answers with what came back.

use serde::Deserialize;
use vmferry_plugin_api::http::{Request, send};
use vmferry_plugin_api::notifier::*;

struct Guest;

#[derive(Deserialize)]
struct Config {
    url: String,
    /// Bytes of request body.
    #[serde(default)]
    size: usize,
    /// Its value, if it should send one.
    authorization: Option<String>,
}

impl Notifier for Guest {
    type Config = Config;

    fn describe() -> Description {
        description!("Calls.")
    }

    fn handle(config: Config, _: Event) -> Result<Verdict, Error> {
        let mut headers = vec![("X-Guest".to_owned(), "here".to_owned())];
        headers.extend(config.authorization.map(|value| ("Authorization".to_owned(), value)));
        let request = Request { method: "POST".to_owned(), url: config.url, headers, body: vec![b'x'; config.size] };
        let answer = send(&request)?;
        Ok(Verdict::Skip(format!("{} {}", answer.status, String::from_utf8_lossy(&answer.body))))
    }
}

vmferry_plugin_api::export_notifier!(Guest);
