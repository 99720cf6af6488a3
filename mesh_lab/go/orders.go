package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// The stream of order events and the group of its workers are those of mesh_lab/orders/event_store.py.
const (
	ordersStream = "ORDERS"
	workersGroup = "workers"
	inHand       = 1_000 // orders of a worker
)

// Order is one purchase, as it travels in every event of its life.
type Order struct {
	ID       string `json:"id"`
	Region   string `json:"region"`
	Customer int    `json:"customer"`
	Day      string `json:"day"`
	CDs      int    `json:"cds"`
	Cents    int    `json:"cents"` // money is never a float
}

// life is what happens to an order when nothing goes wrong; the payment provider of the course declines no real one.
var life = [...]string{"placed", "paid", "shipped"}

// event returns the message of one event, which carries the whole order. By its id, the server recognises a repeated one.
func (o Order) event(name string, data []byte) *nats.Msg {
	return &nats.Msg{
		Subject: "orders." + o.Region + "." + o.ID + "." + name,
		Data:    data,
		Header:  nats.Header{nats.MsgIdHdr: {o.ID + "." + name}},
	}
}

// readOrders returns the first orders of the data set, or all of them for 0. Its columns are customer, date, CDs, value.
//
// The data set names no regions: odd customers shop in eu, even ones in us. An order's id is the number of its row.
func readOrders(path string, first int) (orders []Order) {
	lines := bufio.NewScanner(must(os.Open(path)))
	lines.Scan() // the header
	for row := 1; (first == 0 || row <= first) && lines.Scan(); row++ {
		fields := strings.Fields(strings.Replace(lines.Text(), ".", "", 1)) // 11.77 dollars become 1177 cents
		if len(fields) != 4 || len(fields[1]) != len("YYYYMMDD") {
			log.Fatalf("%s line %d: %q is no order", path, row+1, lines.Text())
		}
		customer, day := must(strconv.Atoi(fields[0])), fields[1]
		orders = append(orders, Order{
			ID:       fmt.Sprintf("%06d", row),
			Region:   [...]string{"us", "eu"}[customer%2],
			Customer: customer,
			Day:      day[:4] + "-" + day[4:6] + "-" + day[6:],
			CDs:      must(strconv.Atoi(fields[2])),
			Cents:    must(strconv.Atoi(fields[3])),
		})
	}
	check(lines.Err())
	return orders
}

// Totals are different orders, different customers, CDs, and the value in US cents.
type Totals struct {
	Orders    int `json:"orders"`
	Customers int `json:"customers"`
	CDs       int `json:"cds"`
	Cents     int `json:"cents"`
}

// tally counts orders, each once.
type tally struct {
	Totals
	doubled   int
	ids       map[string]bool
	customers map[int]bool
}

// add counts an order, unless it was counted before.
func (t *tally) add(order Order) {
	if t.ids == nil {
		t.ids, t.customers = map[string]bool{}, map[int]bool{}
	}
	if t.ids[order.ID] {
		t.doubled++
		return
	}
	t.ids[order.ID], t.customers[order.Customer] = true, true
	t.Orders, t.Customers = len(t.ids), len(t.customers)
	t.CDs += order.CDs
	t.Cents += order.Cents
}

// orders is the main job: a publisher, workers and a reader, each a process of its own, and a check of every total. Its
// clock runs from their start until every event has been read and every order acknowledged.
func orders(s *session) report {
	var expected tally
	for _, order := range readOrders(s.file, s.count) {
		expected.add(order)
	}
	events := len(life) * expected.Orders
	ctx := context.Background()
	store := must(s.js.CreateStream(ctx, jetstream.StreamConfig{
		Name: ordersStream, Subjects: []string{"orders.*.*.*"}, Storage: jetstream.FileStorage, Replicas: s.replicas,
		Duplicates: 120 * time.Second, DenyDelete: true, DenyPurge: true,
	}))
	group := must(store.CreateConsumer(ctx, jetstream.ConsumerConfig{
		Durable: workersGroup, FilterSubject: "orders.*.*.placed",
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: 5 * time.Second, MaxAckPending: 20_000,
	}))
	urls := s.leaderFirst(store)

	began := time.Now().UnixNano()
	reader, publisher := start("reader", urls, "-count", strconv.Itoa(events)), start("publisher", urls)
	var workers []*child
	for range s.workers {
		workers = append(workers, start("worker", urls))
	}
	publisher.report()
	found := reader.report()
	for info := must(group.Info(ctx)); info.NumPending+uint64(info.NumAckPending) > 0; info = must(group.Info(ctx)) {
		time.Sleep(100 * time.Millisecond)
	}
	found.BeganNs, found.EndedNs = began, time.Now().UnixNano()

	for _, worker := range workers {
		check(worker.stdin.Close())
		check(worker.Wait())
	}
	stored := int(must(store.Info(ctx)).State.Msgs)
	check(s.js.DeleteStream(ctx, ordersStream))
	for _, event := range life {
		if found.Events[event] != expected.Totals || found.Doubled != 0 || stored != events {
			log.Fatalf("wrong totals: %+v, and %d messages stored; expected %+v", found, stored, expected.Totals)
		}
	}
	return found
}

// leaderFirst returns the servers' addresses, first that of the stream's leader: beside it, each message saves a hop.
func (s *session) leaderFirst(store jetstream.Stream) string {
	urls := strings.Split(s.urls, ",")
	for i, url := range urls {
		look := session{window: 1}
		look.connect(url)
		if cluster := store.CachedInfo().Cluster; cluster != nil && cluster.Leader == look.ConnectedServerName() {
			urls[0], urls[i] = urls[i], urls[0]
		}
		look.Close()
	}
	return strings.Join(urls, ",")
}

// place stores the event placed of each order.
func place(s *session) report {
	orders := readOrders(s.file, s.count)
	return s.publishAll(len(orders), func(i int) *nats.Msg {
		return orders[i].event("placed", must(json.Marshal(orders[i])))
	})
}

// work turns each placed order into the events that follow, and acknowledges it when they are stored. An order that is
// not acknowledged comes again, and ids keep its events from being stored twice. The events of an order leave together:
// should the first one be refused, the second one may stand in the stream alone for that long.
func work(s *session) report {
	type step struct {
		msg    jetstream.Msg
		events []jetstream.PubAckFuture
	}
	steps := make(chan step, inHand)
	group := must(s.js.Consumer(context.Background(), ordersStream, workersGroup))
	must(group.Consume(func(msg jetstream.Msg) {
		var order Order
		check(json.Unmarshal(msg.Data(), &order))
		next := step{msg: msg}
		for _, event := range life[1:] {
			next.events = append(next.events, s.publish(order.event(event, msg.Data())))
		}
		steps <- next
	}, jetstream.PullMaxMessages(inHand)))
	for step := range steps {
		for _, event := range step.events {
			<-event.Ok()
		}
		check(step.msg.Ack())
	}
	return report{}
}

// read counts the events of all orders, until they are there.
func read(s *session) report {
	events, received := map[string]*tally{}, 0
	for _, event := range life {
		events[event] = &tally{}
	}
	reader := must(s.js.OrderedConsumer(context.Background(), ordersStream, jetstream.OrderedConsumerConfig{}))
	s.consumeAll(reader, func(msg jetstream.Msg) bool {
		var order Order
		check(json.Unmarshal(msg.Data(), &order))
		events[msg.Subject()[strings.LastIndexByte(msg.Subject(), '.')+1:]].add(order)
		received++
		return received == s.count
	})
	found := report{Events: map[string]Totals{}}
	for event, counted := range events {
		found.Events[event] = counted.Totals
		found.Doubled += counted.doubled
	}
	return found
}
