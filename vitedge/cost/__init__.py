"""What a plan costs: work by kind, and what a unit of it takes on a device. The models import no torch."""
