mod detection;
mod members;
mod sim;
