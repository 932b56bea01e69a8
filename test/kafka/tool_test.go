package kafka

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseDescribed(t *testing.T) {
	for _, tt := range []struct {
		name, out string
		want      map[Partition]Described
		wantErr   bool
	}{
		{
			name: "without members",
			out: `
Consumer group 'hello' has no active members.

GROUP           TOPIC           PARTITION  CURRENT-OFFSET  LOG-END-OFFSET  LAG             CONSUMER-ID     HOST            CLIENT-ID
hello           orders          0          3               9               6               -               -               -
hello           orders          11         -               8               -               -               -               -
`,
			want: map[Partition]Described{
				{"orders", 0}:  {Committed: 3, End: 9, Lag: 6},
				{"orders", 11}: {Committed: None, End: 8, Lag: None},
			},
		},
		{
			name: "with a member, and a column more",
			out: `GROUP TOPIC PARTITION LEADER-EPOCH CURRENT-OFFSET LOG-END-OFFSET LAG CONSUMER-ID HOST CLIENT-ID
hello orders 0 - 3 9 6 kgo-1 /127.0.0.1 kgo
`,
			want: map[Partition]Described{{"orders", 0}: {Committed: 3, End: 9, Lag: 6, Member: "kgo-1"}},
		},
		{name: "no table", out: "Error: Consumer group 'hello' does not exist.\n", wantErr: true},
		{name: "no partition", out: "GROUP TOPIC PARTITION\nhello orders x\n", wantErr: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseDescribed(tt.out)
			if (err != nil) != tt.wantErr {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}
