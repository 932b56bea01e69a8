import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import io.prometheus.client.Counter;
import io.prometheus.client.Histogram;
import io.prometheus.client.exporter.HTTPServer;
import io.prometheus.client.CollectorRegistry;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.util.concurrent.Executors;

/** The shape of Kubeless's Java runtime: the JDK's server and simpleclient, three metrics without labels. */
public final class Function {
    private static final Counter CALLS =
        Counter.build().name("function_calls_total").help("Total function calls.").register();
    private static final Counter FAILURES =
        Counter.build().name("function_failures_total").help("Total function call failures.").register();
    private static final Histogram DURATION = Histogram.build().name("function_duration_seconds")
        .help("Duration of time user function ran in seconds.").register();

    public static void main(String[] args) throws IOException {
        int port = Integer.parseInt(System.getenv("PORT"));
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 0);
        server.createContext("/", Function::call);
        server.createContext("/healthz", he -> answer(he, 200, "OK"));
        // Without this context, as in the older runtimes, a scrape is a call; see the capture kubeless-java-old.
        if (System.getenv("NO_METRICS_PATH") == null) {
            server.createContext("/metrics", new HTTPServer.HTTPMetricHandler(CollectorRegistry.defaultRegistry));
        }
        server.setExecutor(Executors.newFixedThreadPool(50));
        server.start();
    }

    private static void call(HttpExchange he) throws IOException {
        CALLS.inc();
        String query = he.getRequestURI().getQuery();
        boolean fail = query != null && query.contains("fail=");
        try (Histogram.Timer timer = DURATION.startTimer()) {
            if (query != null && query.startsWith("sleep=")) {
                Thread.sleep(Long.parseLong(query.substring("sleep=".length())));
            }
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
        if (fail) {
            FAILURES.inc();
        }
        answer(he, fail ? 500 : 200, "hello");
    }

    private static void answer(HttpExchange he, int status, String body) throws IOException {
        he.getRequestBody().readAllBytes();
        he.sendResponseHeaders(status, body.length());
        he.getResponseBody().write(body.getBytes());
        he.close();
    }
}
