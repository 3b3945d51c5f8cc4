//! Lua scripts by their hash, sent whole only where Redis does not know them yet.
//!
//! Each touches the keys of one hash tag, so all of them run on a Redis Cluster as they are.

use std::sync::OnceLock;

use fred::prelude::*;

/// Writes a row unless a newer connection stands: `{1, what stood}` or `{0, what stands}`.
pub(super) static PLACE: Script = Script::new(include_str!("lua/place.lua"));
/// Removes a row of exactly that connection: 1 or 0.
pub(super) static REMOVE: Script = Script::new(include_str!("lua/remove.lua"));
/// One heartbeat: 1 still known, 0 written anew, -1 taken for dead meanwhile.
pub(super) static BEAT: Script = Script::new(include_str!("lua/beat.lua"));
/// Becomes the one who claims a dead node's rows, or goes on being: 1 or 0.
pub(super) static CLAIM: Script = Script::new(include_str!("lua/claim.lua"));
/// Removes and announces a user's rows of a dead node: how many.
pub(super) static BURY: Script = Script::new(include_str!("lua/bury.lua"));
/// Takes a token: milliseconds to wait, 0 if it was there.
pub(super) static TAKE_TOKEN: Script = Script::new(include_str!("lua/take_token.lua"));

pub(super) struct Script {
    lua: &'static str,
    sha: OnceLock<String>,
}

impl Script {
    const fn new(lua: &'static str) -> Self {
        Self { lua, sha: OnceLock::new() }
    }

    pub(super) async fn call<R: FromValue>(
        &self,
        client: &Client,
        keys: Vec<String>,
        args: Vec<Value>,
    ) -> Result<R, Error> {
        if let Some(sha) = self.sha.get() {
            match client.evalsha::<Value, _, _, _>(sha.as_str(), keys.clone(), args.clone()).await {
                Err(error) if error.details().starts_with("NOSCRIPT") => {}
                answer => return answer?.convert(),
            }
        } else if let Ok(sha) = client.script_load::<String, _>(self.lua).await {
            // Two callers at once load the same text and get the same hash.
            let _ = self.sha.set(sha);
        }
        client.eval::<Value, _, _, _>(self.lua, keys, args).await?.convert()
    }
}
