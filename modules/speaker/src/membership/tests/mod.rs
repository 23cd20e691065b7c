mod detection;
mod members;
mod sealed;
mod sim;
