package driver

import (
	"bytes"
	"testing"
)

func TestPercentileIsTheValueAtThatPosition(t *testing.T) {
	values := make([]float64, 1000)
	for i := range values {
		values[i] = float64(i)
	}
	for share, wanted := range map[float64]float64{0: 0, 0.5: 500, 0.99: 990, 0.999: 999, 1: 999} {
		if got := Percentile(values, share); got != wanted {
			t.Errorf("share %v: %v, not %v", share, got, wanted)
		}
	}
	if Percentile(nil, 0.5) != 0 {
		t.Error("of no values it is 0")
	}
}

func TestAMachineIsRestoredFromItsImage(t *testing.T) {
	one, other := NewMachine(), NewMachine()
	one.Apply(Payload(1, 16), Payload(2, 16), Payload(1, 24))
	if err := other.Restore(one.Image()); err != nil {
		t.Fatal(err)
	}
	if other.Count() != 3 || !bytes.Equal(other.Get("00000001"), Payload(1, 24)) {
		t.Errorf("count %d, %q", other.Count(), other.Get("00000001"))
	}
}
