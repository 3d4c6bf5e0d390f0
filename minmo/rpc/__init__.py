"""What every gRPC service and client of MinMo shares."""
