"""The capacity search: loads sent one after another, each judged, until the capacity is known."""
