//! What clients build on, asked of this crate's server and, where KUBEBUILDER_ASSETS has etcd and kube-apiserver, of the
//! real one: the same questions, by the same client.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test without cargo's harness")]

mod accounts;
mod client;
mod objects;
mod patches;
mod real;
mod watches;

use std::net::TcpListener;
use std::sync::Arc;

use homelab_test_api::{Api, Setup};
use libtest_mimic::{Arguments, Trial};

use client::Client;

type Contract = (&'static str, fn(&Client<'_>));

fn main() {
    let arguments = Arguments::from_args();
    let contracts = |newest: bool| {
        let newest = if newest { watches::NEWEST } else { &[] };
        let more = accounts::CONTRACTS.iter().chain(watches::CONTRACTS).chain(newest);
        objects::CONTRACTS.iter().chain(patches::CONTRACTS).chain(more).copied()
    };
    let ours = |(name, contract): Contract| {
        Trial::test(format!("ours::{name}"), move || {
            let setup = Setup { admin: Some(real::TOKEN), ..Setup::default() };
            let api = Api::set_up(TcpListener::bind("127.0.0.1:0")?, setup)?;
            let mut client = Client::of(&api);
            let bearer = format!("Authorization: Bearer {}", real::TOKEN);
            client.arguments = vec!["--header".to_owned(), bearer];
            contract(&client);
            Ok(())
        })
    };
    let mut trials: Vec<Trial> = contracts(true).map(ours).collect();
    trials.push(Trial::test("ours::bookmarks_come_when_told", || {
        watches::bookmarks_come_when_told();
        Ok(())
    }));
    let real = if arguments.list { None } else { real::find() };
    let server = match &real {
        Some(assets) => {
            let server =
                real::Server::start(assets).unwrap_or_else(|error| panic!("kube-apiserver: {error}"));
            println!("the same questions go to {}", server.version);
            if !server.newest {
                println!("but for streaming lists and watches without a version: they need etcd 3.5.13");
            }
            Some(Arc::new(server))
        }
        None => {
            println!("no kube-apiserver in KUBEBUILDER_ASSETS: this crate's server alone is asked");
            None
        }
    };
    if let Some(server) = &server {
        trials.extend(contracts(server.newest).map(|(name, contract)| {
            let server = Arc::clone(server);
            Trial::test(format!("{}::{name}", server.version), move || {
                contract(&server.client());
                Ok(())
            })
        }));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    // `exit` runs no destructors, and the trials had the other references.
    drop(server);
    conclusion.exit();
}
